use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::LazyLock;

/// The processors this process may use, by the part of the memory that is near them: the nodes of a
/// machine with non-uniform memory access, or one where that is not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Topology {
    /// Numbers of the CPUs of each node, ascending. No node is without one, unless nothing is known.
    nodes: Vec<Vec<usize>>,
}

impl Topology {
    /// That of this machine when it was first asked for, before any thread was bound.
    pub(crate) fn machine() -> &'static Topology {
        static MACHINE: LazyLock<Topology> = LazyLock::new(|| {
            affinity()
                .and_then(|allowed| Topology::read(Path::new("/sys/devices/system/node"), &allowed))
                .unwrap_or_else(Topology::unknown)
        });
        &MACHINE
    }

    fn unknown() -> Self {
        Topology { nodes: vec![Vec::new()] }
    }

    /// Reads a folder laid out as Linux's `/sys/devices/system/node`: `node0/cpulist`, and so on.
    /// Nodes are left out that have none of the `allowed` CPUs. None if the folder says nothing of
    /// one of these.
    pub(crate) fn read(root: &Path, allowed: &[usize]) -> Option<Self> {
        let mut nodes = Vec::new();
        for entry in fs::read_dir(root).ok()? {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let Some(number) = name.to_str()?.strip_prefix("node") else { continue };
            let number: usize = number.parse().ok()?;
            let list = ranges(&fs::read_to_string(entry.path().join("cpulist")).ok()?)?;
            let listed = |cpu: &usize| list.iter().any(|range| range.contains(cpu));
            let cpus: Vec<usize> = allowed.iter().copied().filter(listed).collect();
            if !cpus.is_empty() {
                nodes.push((number, cpus));
            }
        }
        nodes.sort();
        let nodes: Vec<Vec<usize>> = nodes.into_iter().map(|(_, cpus)| cpus).collect();
        let found = nodes.iter().map(Vec::len).sum::<usize>();
        (found == allowed.len() && found > 0).then_some(Topology { nodes })
    }

    /// The node of each of so many threads: as many on each as is its part of the CPUs.
    pub(crate) fn places(&self, threads: usize) -> Vec<usize> {
        let of_cpus: Vec<usize> = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(node, cpus)| vec![node; cpus.len().max(1)])
            .collect();
        (0..threads).map(|thread| of_cpus[thread * of_cpus.len() / threads]).collect()
    }

    /// Keeps the caller's thread on the CPUs of a node, if there are several nodes. Only speed
    /// depends on it, so a refusal is nothing to report.
    pub(crate) fn bind(&self, node: usize) {
        if self.nodes.len() > 1 {
            set_affinity(&self.nodes[node]);
        }
    }
}

/// `0-3,8` as in Linux's lists of CPUs; none for an empty one.
fn ranges(list: &str) -> Option<Vec<RangeInclusive<usize>>> {
    let parts = list.trim().split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .collect()
}

/// The CPUs that the caller's thread may run on, ascending.
#[cfg(target_os = "linux")]
fn affinity() -> Option<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None).ok()?;
    Some((0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

#[cfg(target_os = "linux")]
fn set_affinity(cpus: &[usize]) {
    let mut set = rustix::thread::CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

#[cfg(not(target_os = "linux"))]
fn affinity() -> Option<Vec<usize>> {
    None
}

#[cfg(not(target_os = "linux"))]
fn set_affinity(_: &[usize]) {}
#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine with these CPUs, of which none need exist.
    pub(crate) fn simulated(nodes: &[&[usize]]) -> Topology {
        Topology { nodes: nodes.iter().map(|cpus| cpus.to_vec()).collect() }
    }

    /// Reads lists of CPUs from files such as Linux shows.
    fn check(lists: &[(&str, &str)], allowed: &[usize], expected: Option<&[&[usize]]>) {
        let root = tempfile::tempdir().unwrap();
        for (node, list) in lists {
            let folder = root.path().join(node);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("cpulist"), list).unwrap();
        }
        // Beside the nodes there are files and folders of other names.
        fs::write(root.path().join("online"), "0\n").unwrap();
        fs::create_dir(root.path().join("power")).unwrap();
        let read = Topology::read(root.path(), allowed);
        assert_eq!(read, expected.map(simulated), "{lists:?}, allowed {allowed:?}");
    }

    #[test]
    fn nodes_are_read_with_the_cpus_that_may_be_used() {
        let two = [("node0", "0-1\n"), ("node1", "2-3\n")];
        check(&two, &[0, 1, 2, 3], Some(&[&[0, 1], &[2, 3]]));
        // Restricted to some CPUs, to those of one node; a CPU that is offline is not allowed.
        check(&two, &[1, 2], Some(&[&[1], &[2]]));
        check(&two, &[2, 3], Some(&[&[2, 3]]));
        let uneven = [("node0", "0-2,8\n"), ("node1", "4\n")];
        check(&uneven, &[0, 1, 2, 4, 8], Some(&[&[0, 1, 2, 8], &[4]]));
        // In the order of their numbers; one has memory alone.
        let many = [("node10", "7\n"), ("node2", "5\n"), ("node3", "\n")];
        check(&many, &[5, 7], Some(&[&[5], &[7]]));
        check(&[("node0", "0-1\n")], &[0, 1], Some(&[&[0, 1]]));
    }

    #[test]
    fn what_is_not_understood_is_not_guessed() {
        check(&[], &[0], None);
        check(&[("node0", "0-1\n")], &[], None);
        // A CPU of no node.
        check(&[("node0", "0-1\n")], &[0, 1, 2], None);
        check(&[("node0", "0-x\n")], &[0], None);
        check(&[("node0", "0-18446744073709551616\n")], &[0], None);
        assert_eq!(Topology::read(Path::new("/nowhere"), &[0]), None);
        assert_eq!(Topology::unknown().places(3), [0, 0, 0]);
    }

    #[test]
    fn threads_are_spread_as_the_cpus_are() {
        let even = simulated(&[&[0, 1], &[2, 3]]);
        assert_eq!(even.places(4), [0, 0, 1, 1]);
        assert_eq!(even.places(2), [0, 1]);
        assert_eq!(even.places(3), [0, 0, 1]);
        assert_eq!(even.places(8), [0, 0, 0, 0, 1, 1, 1, 1]);
        let uneven = simulated(&[&[0, 1, 2, 3], &[4], &[5, 6, 7]]);
        assert_eq!(uneven.places(8), [0, 0, 0, 0, 1, 2, 2, 2]);
        assert_eq!(uneven.places(2), [0, 1]);
        assert_eq!(uneven.places(1), [0]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_bound_thread_runs_on_its_node() {
        let allowed = affinity().unwrap();
        // The last CPU is a node of its own, and the others another, if there are others.
        let (last, others) = allowed.split_last().unwrap();
        let topology = simulated(&[&[*last], if others.is_empty() { &[1000] } else { others }]);
        std::thread::spawn(move || {
            topology.bind(0);
            assert_eq!(affinity().unwrap(), topology.nodes[0]);
            assert_eq!(rustix::thread::sched_getcpu(), topology.nodes[0][0]);
        })
        .join()
        .unwrap();
    }
}
