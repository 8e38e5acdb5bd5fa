use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// What a job does for each of its tasks.
pub(super) type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// The tasks of a job. Each node has a share of its own, tasks that follow one another, which is
/// the same each time for as many tasks: so a node's threads touch the same part of a matrix in each
/// job, and what they touched first lies in the memory near them.
pub(super) struct Claims {
    shares: Box<[Share]>,
    /// How many threads are on the nodes before the one that a share belongs to, and on all nodes.
    threads_before: Box<[usize]>,
}

/// All that threads ask and write for each task, in one cache line (and the one that is fetched along
/// with it), so that nodes wait for one another only where they help.
#[repr(align(128))]
#[derive(Default)]
struct Share {
    /// The job's number (high half) and how many of the share's tasks are unclaimed (low half).
    state: AtomicU64,
    /// The first task behind the share's.
    end: AtomicUsize,
    unfinished: AtomicUsize,
    /// Valid while tasks are unfinished.
    work: AtomicPtr<Work<'static>>,
}

/// A task that nobody else will run. The job waits for it until it is finished.
pub(super) struct Claim<'a> {
    pub(super) task: usize,
    share: &'a Share,
}

impl Claims {
    /// `homes` are the nodes of all threads.
    pub(super) fn new(nodes: usize, homes: &[usize]) -> Self {
        Claims {
            shares: (0..nodes).map(|_| Share::default()).collect(),
            threads_before: (0..=nodes)
                .map(|node| homes.iter().filter(|home| **home < node).count())
                .collect(),
        }
    }

    /// Begins the job of that number. The one before must be finished.
    ///
    /// # Safety
    /// `work` must live until this job is [finished](Claims::finished).
    pub(super) unsafe fn publish(&self, job: u32, tasks: usize, work: &Work) {
        let threads = self.threads_before[self.shares.len()];
        let mut start = 0;
        for (share, before) in self.shares.iter().zip(&self.threads_before[1..]) {
            let end = tasks * before / threads;
            share.end.store(end, Ordering::Relaxed);
            share.unfinished.store(end - start, Ordering::Relaxed);
            share.work.store((&raw const *work).cast_mut().cast(), Ordering::Relaxed);
            share.state.store(u64::from(job) << 32 | (end - start) as u64, Ordering::SeqCst);
            start = end;
        }
    }

    /// Claims a task for a thread whose node is `home`: one of its share while there are any, then
    /// one of another's.
    ///
    /// Nobody helps others with a job that has not reached his own share: shares are published one
    /// after the other, and a job would else begin with the tasks of strangers.
    #[inline]
    pub(super) fn claim(&self, home: usize) -> Option<Claim<'_>> {
        let own = self.shares[home].state.load(Ordering::Acquire);
        if let Some(claim) = self.shares[home].claim(own, job(own)) {
            return Some(claim);
        }
        let mut others = self.shares[home + 1..].iter().chain(&self.shares[..home]);
        others.find_map(|share| share.claim(share.state.load(Ordering::Acquire), job(own)))
    }

    /// Whether the last job's tasks are all finished. What they wrote can then be read.
    pub(super) fn finished(&self) -> bool {
        self.shares.iter().all(|share| share.unfinished.load(Ordering::Acquire) == 0)
    }

    /// Whether any task is unclaimed.
    pub(super) fn any(&self) -> bool {
        self.shares.iter().any(|share| unclaimed(share.state.load(Ordering::SeqCst)) > 0)
    }
}

impl Share {
    /// Claims a task of the share in that job; `state` is what was seen last.
    #[inline]
    fn claim(&self, mut state: u64, wanted: u32) -> Option<Claim<'_>> {
        while job(state) == wanted && unclaimed(state) > 0 {
            // The job's number in the high half makes a claim on an older job fail.
            match self.state.compare_exchange_weak(
                state,
                state - 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    let task = self.end.load(Ordering::Relaxed) - unclaimed(state);
                    return Some(Claim { task, share: self });
                }
                Err(now) => state = now,
            }
        }
        None
    }
}

impl Claim<'_> {
    /// What is to be done with the task.
    pub(super) fn work(&self) -> Work<'_> {
        // SAFETY: the task is claimed and not finished, so the job is not, and `publish` was promised
        // that its work is alive; the pointer was stored before the state that the claim acquired.
        unsafe { *self.share.work.load(Ordering::Relaxed) }
    }

    pub(super) fn finish(self) {
        self.share.unfinished.fetch_sub(1, Ordering::Release);
    }
}

fn job(state: u64) -> u32 {
    (state >> 32) as u32
}

fn unclaimed(state: u64) -> usize {
    state as u32 as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(claims: &Claims, home: usize) -> Option<usize> {
        let claim = claims.claim(home)?;
        assert!(!claims.finished());
        let task = claim.task;
        claim.finish();
        Some(task)
    }

    /// The tasks that a thread on `home` gets if nobody else claims any.
    fn all(claims: &Claims, home: usize) -> Vec<usize> {
        let tasks = std::iter::from_fn(|| one(claims, home)).collect();
        assert!(claims.finished() && !claims.any());
        tasks
    }

    fn publish(claims: &Claims, job: u32, tasks: usize) {
        const NOTHING: Work = &|_| {};
        // SAFETY: it is a constant.
        unsafe { claims.publish(job, tasks, &NOTHING) };
    }

    #[test]
    fn a_share_of_one_s_own_comes_first() {
        // Nodes of 2, 1 and 1 threads.
        let claims = Claims::new(3, &[0, 0, 1, 2]);
        publish(&claims, 1, 8);
        assert!(claims.any());
        assert_eq!(all(&claims, 0), [0, 1, 2, 3, 4, 5, 6, 7]);
        publish(&claims, 2, 8);
        assert_eq!(all(&claims, 1), [4, 5, 6, 7, 0, 1, 2, 3]);
        publish(&claims, 3, 8);
        assert_eq!([2, 1, 0, 2, 1].map(|home| one(&claims, home).unwrap()), [6, 4, 0, 7, 5]);
        assert_eq!(all(&claims, 1), [1, 2, 3]);
        // As many tasks are divided in the same way each time; few leave some node without any.
        publish(&claims, 4, 3);
        assert_eq!(all(&claims, 2), [2, 0, 1]);
        publish(&claims, 5, 1);
        assert_eq!(all(&claims, 1), [0]);
        // One node: in their order.
        let claims = Claims::new(1, &[0, 0]);
        publish(&claims, 1, 3);
        assert_eq!(all(&claims, 0), [0, 1, 2]);
    }

    #[test]
    fn a_node_without_threads_has_no_share_but_helps() {
        let claims = Claims::new(3, &[0, 2]);
        publish(&claims, 1, 4);
        assert_eq!(all(&claims, 1), [2, 3, 0, 1]);
    }

    #[test]
    fn a_job_that_has_not_come_to_one_s_own_share_is_left_to_others() {
        let claims = Claims::new(2, &[0, 1]);
        publish(&claims, 1, 2);
        assert_eq!(all(&claims, 0), [0, 1]);
        // As in the middle of `publish`.
        claims.shares[0].unfinished.store(1, Ordering::Relaxed);
        claims.shares[0].state.store(2 << 32 | 1, Ordering::SeqCst);
        assert!(claims.any());
        assert_eq!([1, 0, 0].map(|home| one(&claims, home)), [None, Some(0), None]);
    }
}
