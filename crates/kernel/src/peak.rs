//! How fast this CPU multiplies and adds when no memory is in the way: what products are held
//! against.

use std::time::Instant;

use crate::gemm::Kernel;
use crate::pool::Pool;

/// Steps of one task: about two milliseconds.
const STEPS: usize = 300_000;
/// Floating-point operations of one step of the loops below: as many as 24 registers take.
const STEP_VECTORS: usize = 24;

/// Multiply-adds of `kernel`'s kind on all threads of the pool, registers alone, in floating-point
/// operations per second. None where the kernel has no instructions of its own.
pub fn peak(pool: &Pool, kernel: Kernel) -> Option<f64> {
    let per_vector = match kernel {
        Kernel::Avx512Bf16 => 64.0,
        Kernel::Avx512F32 => 32.0,
        Kernel::Narrow | Kernel::Scalar(_) => return None,
    };
    // Several tasks a thread, so that a thread that was interrupted leaves some to the others.
    let tasks = 4 * pool.threads();
    let started = Instant::now();
    pool.run(tasks, &|_| spin(kernel));
    let seconds = started.elapsed().as_secs_f64();
    Some((tasks * STEPS * STEP_VECTORS) as f64 * per_vector / seconds)
}

fn spin(kernel: Kernel) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: panels have these kernels where the CPU has the instructions only.
    unsafe {
        match kernel {
            Kernel::Avx512Bf16 => x86::bf16(STEPS),
            Kernel::Avx512F32 => x86::f32(STEPS),
            Kernel::Narrow | Kernel::Scalar(_) => {}
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = kernel;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::STEP_VECTORS;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn bf16(steps: usize) {
        let one = _mm512_castps_si512(_mm512_set1_ps(black_box(1.0)));
        // SAFETY: the cast keeps the bits.
        let one = unsafe { std::mem::transmute::<__m512i, __m512bh>(one) };
        let mut sums = [_mm512_setzero_ps(); STEP_VECTORS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, one, one);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn f32(steps: usize) {
        let one = _mm512_set1_ps(black_box(1.0));
        let mut sums = [_mm512_setzero_ps(); STEP_VECTORS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(one, one, *sum);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Precision;

    #[test]
    fn every_kernel_of_this_cpu_has_a_peak() {
        let pool = Pool::new(1);
        for precision in [Precision::F32, Precision::best()] {
            let kernel = Kernel::best(precision);
            let expected = crate::cpu::level() == crate::cpu::Level::Avx512;
            assert_eq!(peak(&pool, kernel).is_some(), expected, "{}", kernel.name());
        }
    }
}
