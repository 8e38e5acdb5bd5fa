use std::fs;
use std::path::Path;

/// Asks the allocator to keep freed memory for the next step instead of giving it back.
///
/// A training step frees and takes hundreds of megabytes; each time they would come back page by
/// page, zeroed by the system. Call it once at the start of a program. Without glibc it does
/// nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` with these parameters only changes thresholds of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// Asks the allocator to give freed memory back to the system, but for small pieces.
///
/// For a server, whose load comes and goes, and in whose heap pieces that stay would otherwise hold
/// what was freed around them. Call it once at the start of a program. Without glibc it does nothing.
pub fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: as in `keep_freed_memory`.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 16);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 17);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Asks the system to back memory by huge pages, which the processor finds faster than many small
/// ones. What is in it stays; where the system refuses, only speed is lost. Less than one huge page
/// is left alone.
pub fn huge_pages<T>(values: &[T]) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const PAGE: usize = 4096;
        const HUGE: usize = 2 << 20;
        let (start, len) = (values.as_ptr().addr(), size_of_val(values));
        let first = start.next_multiple_of(PAGE);
        if len < 2 * HUGE {
            return;
        }
        let len = (start + len - first) / PAGE * PAGE;
        // SAFETY: the range lies within `values`; the advice changes no content, and is answered
        // with an error where it cannot be followed.
        unsafe {
            let first = values.as_ptr().cast_mut().cast::<libc::c_void>().byte_add(first - start);
            libc::madvise(first, len, libc::MADV_HUGEPAGE);
            // Small pages that are there already.
            libc::madvise(first, len, libc::MADV_COLLAPSE);
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = values;
}

/// Bytes of memory that this process can still take, where the system says so: what is free or only holds
/// content of files, on the machine and within the limits of the control groups that it runs in.
pub fn available_memory() -> Option<u64> {
    let machine = kibibytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(machine.min(room(Path::new("/sys/fs/cgroup"), &groups).unwrap_or(u64::MAX)))
}

/// The most memory that this process has held so far, and what it holds now, in bytes, where the system
/// says so.
pub fn held_memory() -> Option<[u64; 2]> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some([kibibytes(&status, "VmHWM:")?, kibibytes(&status, "VmRSS:")?])
}

/// What the control groups leave, which `/proc/self/cgroup` names in the form `groups`. In a container
/// a group's path may begin outside, but the container's own group is then at the root.
fn room(root: &Path, groups: &str) -> Option<u64> {
    let room_of = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (root, limit, used) = match controllers {
            "" => (root.to_path_buf(), "memory.max", "memory.current"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => return None,
        };
        // Each group is within those above.
        let groups = Path::new(path).ancestors();
        let rooms = groups.filter_map(|group| {
            let folder = root.join(group.strip_prefix("/").ok()?);
            let number = |name: &str| -> Option<u64> {
                fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
            };
            let limit = number(limit)?;
            let of_files = fs::read_to_string(folder.join("memory.stat")).ok();
            let of_files = of_files.and_then(|text| value(&text, "inactive_file ")).unwrap_or(0);
            Some(limit.saturating_sub(number(used)?.saturating_sub(of_files)))
        });
        rooms.min()
    };
    groups.lines().filter_map(room_of).min()
}

/// The bytes of a line such as `VmRSS:   1234 kB`.
fn kibibytes(text: &str, key: &str) -> Option<u64> {
    Some(value(text, key)? << 10)
}

/// The number behind a key at the beginning of a line.
fn value(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_asked_in_kibibytes() {
        assert_eq!(kibibytes("VmPeak:\t 9 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12 << 10));
        assert_eq!(kibibytes("VmPeak:\t 9 kB\n", "VmRSS:"), None);
    }

    #[test]
    fn control_groups_limit_what_is_available() {
        assert!(available_memory().is_none_or(|bytes| bytes > 0));
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let found = |groups: &str| room(root.path(), groups);
        assert_eq!(found(""), None);
        write("memory.max", "max\n");
        write("memory.current", "5\n");
        assert_eq!(found("0::/a/b\n"), None);
        // A group with a limit, in one with a lower one.
        write("a/b/memory.max", "1000\n");
        write("a/b/memory.current", "300\n");
        write("a/memory.max", "800\n");
        write("a/memory.current", "500\n");
        write("a/memory.stat", "anon 100\ninactive_file 150\n");
        assert_eq!(found("0::/a/b\n"), Some(450));
        assert_eq!(found("0::/a/elsewhere\n"), Some(450));
        // The older form.
        write("memory/memory.limit_in_bytes", "400\n");
        write("memory/memory.usage_in_bytes", "100\n");
        let older = "5:cpu,cpuacct:/x\n4:memory:/docker/x\n0::/a\n";
        assert_eq!(found(older), Some(300));
    }
}
