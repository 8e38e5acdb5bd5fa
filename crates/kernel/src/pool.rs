use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::buffer::{Buffer, Buffers};

/// How often an idle worker looks for work before it sleeps: about a millisecond, longer than the
/// pauses between the parallel regions of one step.
const SPINS: u32 = 50_000;

/// A fixed set of threads that run numbered tasks.
///
/// Which thread runs a task is left to chance; what the task computes must not depend on it. All
/// operations of this crate split their work into tasks by shape alone, so that results are the
/// same, bit for bit, for any number of threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time; callers on several threads take turns.
    turn: Mutex<u32>,
    buffers: Buffers,
}

type Work<'a> = &'a (dyn Fn(usize) + Sync);

struct Job<'a> {
    work: Work<'a>,
    tasks: usize,
}

struct Shared {
    /// The job's number (high half) and how many of its tasks are unclaimed (low half).
    state: AtomicU64,
    /// Valid while the job of `state` has unfinished tasks.
    job: AtomicPtr<Job<'static>>,
    finished: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

impl Pool {
    /// A pool of `threads` threads, the caller's own being one of them.
    ///
    /// # Panics
    /// If the system refuses to start a thread.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            finished: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let workers = (1..threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || shared.work())
                    .expect("the system can start a thread")
            })
            .collect();
        Pool { shared, workers, turn: Mutex::new(0), buffers: Buffers::default() }
    }

    /// The caller's thread alone: for what a task does on its own.
    pub(crate) fn local() -> &'static Pool {
        static LOCAL: LazyLock<Pool> = LazyLock::new(|| Pool::new(1));
        &LOCAL
    }

    /// A pool with one thread for each core this process may use.
    pub fn machine() -> Self {
        Pool::new(std::thread::available_parallelism().map_or(1, usize::from))
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Memory for `len` values, whatever they were before; it comes back to the pool.
    pub fn buffer(&self, len: usize) -> Buffer<'_> {
        self.buffers.take(len)
    }

    /// As [`Pool::buffer`], all zero.
    pub fn zeros(&self, len: usize) -> Buffer<'_> {
        let mut buffer = self.buffers.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// Runs `work(0)` to `work(tasks - 1)`, each once, and returns when all are done.
    ///
    /// # Panics
    /// If a task panics, after the other tasks have ended.
    pub fn run(&self, tasks: usize, work: Work) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(work);
            return;
        }
        assert!(tasks < u32::MAX as usize, "{tasks} tasks");
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        *turn = turn.wrapping_add(1);
        let shared = &*self.shared;
        let job = Job { work, tasks };
        shared.finished.store(0, Ordering::Relaxed);
        shared.job.store((&raw const job).cast_mut().cast(), Ordering::Relaxed);
        shared.state.store(u64::from(*turn) << 32 | tasks as u64, Ordering::SeqCst);
        if *shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            shared.wake.notify_all();
        }
        while shared.run_one() {}
        let mut spins = 0;
        while shared.finished.load(Ordering::Acquire) < tasks {
            relax(&mut spins);
        }
        drop(turn);
        if shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a task of the thread pool panicked");
        }
    }

    /// Splits `out` into pieces of `size` values (the last may be shorter) and runs
    /// `work(index, piece)` for each.
    pub fn pieces<T: Send>(
        &self,
        out: &mut [T],
        size: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let len = out.len();
        let base = SendPtr(out.as_mut_ptr());
        self.run(len.div_ceil(size), &|index| {
            let start = index * size;
            // SAFETY: pieces of different tasks do not overlap, lie within `out`, and `out` is
            // borrowed exclusively until `run` returns.
            let piece = unsafe {
                std::slice::from_raw_parts_mut(base.get().add(start), size.min(len - start))
            };
            work(index, piece);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Claims and runs one task; false if none is left.
    fn run_one(&self) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let left = state as u32;
            if left == 0 {
                return false;
            }
            // The job's number in the high half makes a claim on an older job fail.
            match self.state.compare_exchange_weak(
                state,
                state - 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        let left = state as u32 as usize;
        // SAFETY: this thread has claimed a task that it has not finished, so `run` has not
        // returned and the job on its stack is alive; the pointer was stored before the state
        // that the claim acquired.
        let job = unsafe { &*self.job.load(Ordering::Relaxed) };
        let task = job.tasks - left;
        if catch_unwind(AssertUnwindSafe(|| (job.work)(task))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        self.finished.fetch_add(1, Ordering::Release);
        true
    }

    fn work(&self) {
        let mut spins = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.run_one() {
                spins = 0;
            } else if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                self.sleep();
                spins = 0;
            }
        }
    }

    fn sleep(&self) {
        let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        *sleepers += 1;
        // `run` stores the state before it takes this lock, so no wake-up is missed.
        while self.state.load(Ordering::SeqCst) as u32 == 0 && !self.stop.load(Ordering::SeqCst) {
            sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
        }
        *sleepers -= 1;
    }
}

fn relax(spins: &mut u32) {
    *spins += 1;
    if *spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
}

/// A pointer that tasks share; who uses it must write to disjoint places.
pub(crate) struct SendPtr<T>(pub(crate) *mut T);

impl<T> SendPtr<T> {
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: a `SendPtr` is only an address; each use states why its accesses do not conflict.
unsafe impl<T: Send> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SendPtr<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(10, &|i| assert_ne!(i, 5))));
        assert!(result.is_err());
        let mut out = vec![0usize; 103];
        pool.pieces(&mut out, 10, |index, piece| piece.fill(index));
        assert_eq!(out[102], 10);
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(5, &|_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 200 * 5);
    }
}
