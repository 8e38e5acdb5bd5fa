use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// What a job does for each of its tasks.
pub(super) type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// The tasks of a job. Each thread has a share of its own, tasks that follow one another, which is the
/// same each time for as many tasks: so a thread touches the same part of a matrix in each job, and a
/// node's threads what they touched first, which lies in the memory near them.
pub(super) struct Claims {
    shares: Box<[Share]>,
    /// Whom each thread helps when its own share is claimed, in this order: those of its node first.
    helped: Box<[Vec<usize>]>,
}

/// All that is asked and written for a task, in one cache line (and the one that is fetched along with
/// it), so that threads wait for one another only where they help.
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
    pub(super) fn new(homes: &[usize]) -> Self {
        let threads = homes.len();
        let helped = (0..threads).map(|thread| {
            let mut others: Vec<usize> = (1..threads).map(|by| (thread + by) % threads).collect();
            others.sort_by_key(|other| homes[*other] != homes[thread]);
            others
        });
        Claims {
            shares: (0..threads).map(|_| Share::default()).collect(),
            helped: helped.collect(),
        }
    }

    /// Begins the job of that number. The one before must be finished.
    ///
    /// # Safety
    /// `work` must live until this job is [finished](Claims::finished).
    pub(super) unsafe fn publish(&self, job: u32, tasks: usize, work: &Work) {
        let mut start = 0;
        for (thread, share) in self.shares.iter().enumerate() {
            // Rounded up: of fewer tasks than threads, the caller's thread has the first.
            let end = (tasks * (thread + 1)).div_ceil(self.shares.len());
            share.end.store(end, Ordering::Relaxed);
            share.unfinished.store(end - start, Ordering::Relaxed);
            share.work.store((&raw const *work).cast_mut().cast(), Ordering::Relaxed);
            share.state.store(u64::from(job) << 32 | (end - start) as u64, Ordering::Release);
            start = end;
        }
    }

    /// Claims a task for a thread: one of its own share while there are any, then one of another's.
    /// `done` is the job of which the thread last found none left.
    ///
    /// Nobody helps others with a job that has not reached his own share: shares are published one
    /// after the other, and a job would else begin with the tasks of strangers.
    #[inline]
    pub(super) fn claim(&self, thread: usize, done: &mut u32) -> Option<Claim<'_>> {
        let own = self.shares[thread].state.load(Ordering::Acquire);
        if job(own) == *done {
            return None;
        }
        if let Some(claim) = self.shares[thread].claim(own, job(own)) {
            return Some(claim);
        }
        let mut published = true;
        for other in &self.helped[thread] {
            let state = self.shares[*other].state.load(Ordering::Acquire);
            if let Some(claim) = self.shares[*other].claim(state, job(own)) {
                return Some(claim);
            }
            published &= job(state) == job(own);
        }
        // Until the next job comes, a look at its own share is enough.
        if published {
            *done = job(own);
        }
        None
    }

    /// Whether the last job's tasks are all finished. What they wrote can then be read.
    pub(super) fn finished(&self) -> bool {
        self.shares.iter().all(|share| share.unfinished.load(Ordering::Acquire) == 0)
    }

    /// Whether any task is unclaimed.
    pub(super) fn any(&self) -> bool {
        self.shares.iter().any(|share| unclaimed(share.state.load(Ordering::Acquire)) > 0)
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

    fn one(claims: &Claims, thread: usize) -> Option<usize> {
        let claim = claims.claim(thread, &mut 0)?;
        assert!(!claims.finished());
        let task = claim.task;
        claim.finish();
        Some(task)
    }

    /// The tasks that a thread gets if nobody else claims any.
    fn all(claims: &Claims, thread: usize) -> Vec<usize> {
        let tasks = std::iter::from_fn(|| one(claims, thread)).collect();
        assert!(claims.finished() && !claims.any());
        tasks
    }

    fn publish(claims: &Claims, job: u32, tasks: usize) {
        const NOTHING: Work = &|_| {};
        // SAFETY: it is a constant.
        unsafe { claims.publish(job, tasks, &NOTHING) };
    }

    #[test]
    fn a_share_of_one_s_own_comes_first_then_those_of_the_node() {
        // Nodes of 2, 1 and 1 threads.
        let claims = Claims::new(&[0, 0, 1, 2]);
        publish(&claims, 1, 8);
        assert!(claims.any());
        assert_eq!(all(&claims, 0), [0, 1, 2, 3, 4, 5, 6, 7]);
        publish(&claims, 2, 8);
        assert_eq!(all(&claims, 1), [2, 3, 0, 1, 4, 5, 6, 7]);
        publish(&claims, 3, 8);
        assert_eq!(all(&claims, 2), [4, 5, 6, 7, 0, 1, 2, 3]);
        publish(&claims, 4, 8);
        assert_eq!([2, 1, 0, 3, 2].map(|thread| one(&claims, thread).unwrap()), [4, 2, 0, 6, 5]);
        assert_eq!(all(&claims, 1), [3, 1, 7]);
        // As many tasks are divided in the same way each time; of few, the first is the caller's.
        publish(&claims, 5, 2);
        assert_eq!([0, 2].map(|thread| one(&claims, thread).unwrap()), [0, 1]);
        publish(&claims, 6, 1);
        assert_eq!(all(&claims, 3), [0]);
    }

    #[test]
    fn a_job_that_has_not_come_to_one_s_own_share_is_left_to_others() {
        let claims = Claims::new(&[0, 1]);
        publish(&claims, 1, 2);
        assert_eq!(all(&claims, 0), [0, 1]);
        // As in the middle of `publish`.
        claims.shares[0].unfinished.store(1, Ordering::Relaxed);
        claims.shares[0].state.store(2 << 32 | 1, Ordering::SeqCst);
        assert!(claims.any());
        assert_eq!([1, 0, 0].map(|thread| one(&claims, thread)), [None, Some(0), None]);
    }

    #[test]
    fn a_thread_looks_at_others_once_for_each_job() {
        let claims = Claims::new(&[0, 0]);
        publish(&claims, 1, 2);
        let mut done = 0;
        for _ in 0..2 {
            claims.claim(0, &mut done).unwrap().finish();
        }
        assert_eq!(done, 0, "there may be more");
        assert!(claims.claim(0, &mut done).is_none());
        assert_eq!(done, 1);
        // The next job has reached the first share only: the second's tasks are yet to come.
        claims.shares[0].state.store(2 << 32, Ordering::SeqCst);
        assert!(claims.claim(0, &mut done).is_none());
        assert_eq!(done, 1);
        publish(&claims, 3, 2);
        assert_eq!(claims.claim(0, &mut done).unwrap().task, 0);
    }
}
