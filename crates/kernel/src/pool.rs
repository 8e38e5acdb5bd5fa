use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;

use self::claims::{Claims, Work};
use self::topology::Topology;
use crate::buffer::{Buffer, Buffers};

mod claims;
mod topology;

/// How often an idle worker looks for work before it sleeps: about a millisecond, longer than the
/// pauses between the parallel regions of one step.
const SPINS: u32 = 50_000;

/// A fixed set of threads that run numbered tasks.
///
/// Which thread runs a task is left to chance; what the task computes must not depend on it. All
/// operations of this crate split their work into tasks by shape alone, so that results are the
/// same, bit for bit, for any number of threads.
///
/// Each thread first claims the tasks of a share that is the same each time. On a machine whose memory
/// belongs to several nodes of CPUs, the threads are bound to nodes (decision 16).
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time; callers on several threads take turns.
    turn: Mutex<u32>,
    buffers: Buffers,
}

struct Shared {
    claims: Claims,
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
        Pool::on(Topology::machine(), threads)
    }

    fn on(topology: &Topology, threads: usize) -> Self {
        let homes = topology.places(threads.max(1));
        let shared = Arc::new(Shared {
            claims: Claims::new(&homes),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        // The caller's thread is not ours to bind: what it starts later would be bound, too.
        let workers = (1..threads)
            .map(|index| {
                let (shared, topology) = (Arc::clone(&shared), topology.clone());
                let home = homes[index];
                std::thread::Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || {
                        topology.bind(home);
                        shared.work(index);
                    })
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
        // SAFETY: this function waits until the job is finished, and does not panic before.
        unsafe { shared.claims.publish(*turn, tasks, &work) };
        if *shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            shared.wake.notify_all();
        }
        let mut done = turn.wrapping_sub(1);
        while shared.run_one(0, &mut done) {}
        let mut spins = 0;
        while !shared.claims.finished() {
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
    fn run_one(&self, thread: usize, done: &mut u32) -> bool {
        let Some(claim) = self.claims.claim(thread, done) else { return false };
        if catch_unwind(AssertUnwindSafe(|| claim.work()(claim.task))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        claim.finish();
        true
    }

    fn work(&self, thread: usize) {
        let (mut spins, mut done) = (0, 0);
        while !self.stop.load(Ordering::Relaxed) {
            if self.run_one(thread, &mut done) {
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
        // `run` publishes its tasks before it takes this lock, so no wake-up is missed.
        while !self.claims.any() && !self.stop.load(Ordering::SeqCst) {
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
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use super::topology::tests::simulated;
    use super::*;
    use crate::{Left, Output, Packed, Precision, matmul};

    /// Machines of one node, of two, and of three uneven ones. Their CPUs do not exist, so nothing is
    /// bound.
    fn machines() -> Vec<Topology> {
        let three: &[&[usize]] = &[&[900], &[910, 911, 912], &[920, 921]];
        [&[&[900, 901][..]][..], &[&[900, 901], &[902, 903]], three].map(simulated).into()
    }

    #[test]
    fn every_task_runs_once() {
        for (machine, threads) in machines().iter().flat_map(|m| [1, 2, 3, 8].map(|n| (m, n))) {
            let pool = Pool::on(machine, threads);
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
    fn threads_begin_with_shares_of_their_own() {
        for machine in machines() {
            let threads = 6;
            let pool = Pool::on(&machine, threads);
            for _ in 0..20 {
                // Nobody gets a second task before all have one.
                let barrier = Barrier::new(threads);
                let by = Mutex::new(vec![usize::MAX; threads]);
                pool.run(threads, &|task| {
                    let thread = std::thread::current();
                    let worker = thread.name().and_then(|name| name.strip_prefix("kernel-"));
                    by.lock().unwrap()[task] = worker.map_or(0, |index| index.parse().unwrap());
                    barrier.wait();
                });
                assert_eq!(by.into_inner().unwrap(), [0, 1, 2, 3, 4, 5], "{machine:?}");
            }
        }
    }

    #[test]
    fn results_are_the_same_on_any_machine() {
        let (m, k, n) = (70, 96, 200);
        let wave = |len: usize| (0..len).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
        let (left, right) = (wave(m * k), wave(n * k));
        let product = |pool: &Pool| {
            let mut out = vec![0.0; m * n];
            let right = Packed::rows(pool, Precision::F32, &right, n, k);
            matmul(pool, &mut out, Left::Rows(&left), &right, Output::Replace);
            out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let expected = product(&Pool::new(1));
        for (machine, threads) in machines().iter().flat_map(|m| [2, 5].map(|n| (m, n))) {
            assert!(product(&Pool::on(machine, threads)) == expected, "{machine:?}, {threads}");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for machine in machines() {
            let pool = Pool::on(&machine, 4);
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(10, &|i| assert_ne!(i, 5))));
            assert!(result.is_err());
            let mut out = vec![0usize; 103];
            pool.pieces(&mut out, 10, |index, piece| piece.fill(index));
            assert_eq!(out[102], 10);
        }
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
