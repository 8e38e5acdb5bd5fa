//! The optimiser's step, its running means in f32 or in 8 bits.
//!
//! In 8 bits, 32 values share an exponent, and each has a float of its own below it: of the gradient's
//! mean a sign, 4 bits of exponent and 3 of mantissa; of the squares' mean 5 and 3, since it is never
//! negative. They are rounded up or down by chance, in proportion to what is nearer: rounded to the
//! nearest, a mean that each step moves by less than half a unit would stay where it is. What chance
//! says depends on the value's place and the step alone, so that a run can be repeated.
//!
//! **Source**: the formats are after the OCP Microscaling Formats (MX) specification 1.0, whose blocks
//! these are; Dettmers et al. 2022, arXiv 2110.02861, has means of 8 bits, with a table of values.

use super::TASK_VALUES;
use crate::Pool;
use crate::cpu::multiversion;

/// The constants of one AdamW step.
///
/// **Source**: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub learning_rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    /// The step's number, from 1, for bias correction.
    pub step: u32,
    /// The gradient is multiplied by this first: clipping by the global norm.
    pub gradient_scale: f32,
}

impl AdamW {
    /// By what the means are multiplied, which began at 0.
    fn corrections(&self) -> [f32; 2] {
        [self.beta1, self.beta2].map(|beta| 1.0 / (1.0 - beta.powi(self.step as i32)))
    }
}

/// One step on `parameters`, with the running means of the gradient and of its square.
///
/// **Shapes**: all of one length.
pub fn adamw(
    pool: &Pool,
    parameters: &mut [f32],
    gradients: &[f32],
    mean: &mut [f32],
    square: &mut [f32],
    step: AdamW,
) {
    let len = parameters.len();
    assert!(gradients.len() == len && mean.len() == len && square.len() == len);
    let means = ([mean, square], TASK_VALUES);
    in_tasks(pool, parameters, gradients, means, |_, weights, gradients, means| {
        let [mean, square] = means;
        piece(weights, gradients, mean, square, step);
    });
}

/// As [`adamw`], with means in 8 bits, [so many bytes](bytes_of_means) each; zeros at the start.
///
/// # Panics
/// If a length does not fit.
pub fn adamw_in_bytes(
    pool: &Pool,
    parameters: &mut [f32],
    gradients: &[f32],
    mean: &mut [u8],
    square: &mut [u8],
    step: AdamW,
) {
    let len = parameters.len();
    let bytes = bytes_of_means(len);
    assert!(gradients.len() == len && mean.len() == bytes && square.len() == bytes);
    let means = ([mean, square], bytes_of_means(TASK_VALUES));
    in_tasks(pool, parameters, gradients, means, |first, weights, gradients, means| {
        let [mean, square] = means;
        piece_in_bytes(weights, gradients, mean, square, step, first);
    });
}

/// Calls `work` for the parts of each task, with the place of its first value; of the means a task has so
/// many elements.
fn in_tasks<M: Send>(
    pool: &Pool,
    parameters: &mut [f32],
    gradients: &[f32],
    ([mean, square], of_task): ([&mut [M]; 2], usize),
    work: impl Fn(u32, &mut [f32], &[f32], [&mut [M]; 2]) + Sync,
) {
    let means = mean.chunks_mut(of_task).zip(square.chunks_mut(of_task));
    let weights = parameters.chunks_mut(TASK_VALUES).zip(gradients.chunks(TASK_VALUES));
    let mut parts: Vec<_> = weights.zip(means).collect();
    pool.pieces(&mut parts, 1, |index, part| {
        let ((parameters, gradients), (mean, square)) = &mut part[0];
        work((index * TASK_VALUES) as u32, parameters, gradients, [mean, square]);
    });
}

/// Bytes of a running mean of `len` values in 8 bits.
pub const fn bytes_of_means(len: usize) -> usize {
    len.div_ceil(BLOCK) * BLOCK_BYTES
}

/// Values that share an exponent.
const BLOCK: usize = 32;
/// The exponent, then the values.
const BLOCK_BYTES: usize = 1 + BLOCK;
/// Bits of a mantissa.
const MANTISSA: u32 = 3;
/// Bits of an f32's mantissa that are rounded away.
const DROPPED: u32 = f32::MANTISSA_DIGITS - 1 - MANTISSA;
/// The largest exponent field: of a signed value, of an unsigned one. It stands for the block's exponent.
const SIGNED: u32 = 15;
const UNSIGNED: u32 = 31;
/// The first code with an exponent.
const NORMAL: u32 = 1 << MANTISSA;
/// The exponent of an f32 that is 1, as its field has it.
const BIAS: i32 = 127;
/// Exponents that a block has, within those of which an f32 has the inverse.
const EXPONENTS: std::ops::RangeInclusive<i32> = -120..=120;

multiversion! {
fn piece(
    parameters: &mut [f32],
    gradients: &[f32],
    mean: &mut [f32],
    square: &mut [f32],
    step: AdamW,
) {
    move_values(parameters, gradients, [mean, square], step, step.corrections());
}
}

multiversion! {
/// `first` is the place of the first value.
fn piece_in_bytes(
    parameters: &mut [f32],
    gradients: &[f32],
    mean: &mut [u8],
    square: &mut [u8],
    step: AdamW,
    first: u32,
) {
    let corrections = step.corrections();
    let means = mean.as_chunks_mut::<BLOCK_BYTES>().0.iter_mut();
    let means = means.zip(square.as_chunks_mut::<BLOCK_BYTES>().0);
    let weights = parameters.chunks_mut(BLOCK).zip(gradients.chunks(BLOCK));
    for (block, ((parameters, gradients), (mean, square))) in weights.zip(means).enumerate() {
        let (mut m, mut v) = (read::<SIGNED>(mean), read::<UNSIGNED>(square));
        match (<&mut [f32; BLOCK]>::try_from(&mut *parameters), <&[f32; BLOCK]>::try_from(gradients)) {
            (Ok(parameters), Ok(gradients)) => {
                move_values(parameters, gradients, [&mut m, &mut v], step, corrections);
            }
            _ => {
                let (m, v) = (&mut m[..gradients.len()], &mut v[..gradients.len()]);
                move_values(parameters, gradients, [m, v], step, corrections);
            }
        }
        let chances = chances(first.wrapping_add((block * BLOCK) as u32), step.step);
        write::<SIGNED>(&m, mean, chances.map(|chance| chance & ((1 << DROPPED) - 1)));
        write::<UNSIGNED>(&v, square, chances.map(|chance| chance >> (32 - DROPPED)));
    }
}
}

#[inline(always)]
fn move_values(
    parameters: &mut [f32],
    gradients: &[f32],
    [mean, square]: [&mut [f32]; 2],
    step: AdamW,
    [correct1, correct2]: [f32; 2],
) {
    let keep = 1.0 - step.learning_rate * step.weight_decay;
    let len = parameters.len();
    let (gradients, mean, square) = (&gradients[..len], &mut mean[..len], &mut square[..len]);
    for i in 0..len {
        let g = gradients[i] * step.gradient_scale;
        mean[i] = step.beta1 * mean[i] + (1.0 - step.beta1) * g;
        square[i] = step.beta2 * square[i] + (1.0 - step.beta2) * g * g;
        let denominator = (square[i] * correct2).sqrt() + step.eps;
        parameters[i] =
            parameters[i] * keep - step.learning_rate * mean[i] * correct1 / denominator;
    }
}

/// Random bits for each value of a block.
///
/// **Source**: Wellons 2018, "Prospecting for hash functions" (`lowbias32`).
#[inline(always)]
fn chances(first: u32, step: u32) -> [u32; BLOCK] {
    let start = step.wrapping_mul(0x9E37_79B9);
    let mut chances = [0; BLOCK];
    for (i, chance) in chances.iter_mut().enumerate() {
        let mut x = start ^ first.wrapping_add(i as u32);
        x = (x ^ x >> 16).wrapping_mul(0x7FEB_352D);
        x = (x ^ x >> 15).wrapping_mul(0x846C_A68B);
        *chance = x ^ x >> 16;
    }
    chances
}

/// The values of a block, `LARGEST` being their largest exponent field.
#[inline(always)]
fn read<const LARGEST: u32>(block: &[u8; BLOCK_BYTES]) -> [f32; BLOCK] {
    let (exponent, codes) = block.split_first().expect("a block has bytes");
    let scale = power(i32::from(*exponent) - BIAS);
    let least_normal = power(1 - LARGEST as i32);
    let mut values = [0.0; BLOCK];
    for i in 0..BLOCK {
        let code = u32::from(codes[i]);
        let (sign, code) =
            if LARGEST == SIGNED { ((code & 0x80) << 24, code & 0x7F) } else { (0, code) };
        // What has no exponent has no leading 1.
        let (lifted, lift) =
            if code < NORMAL { (code + NORMAL, least_normal) } else { (code, 0.0) };
        let size = f32::from_bits((lifted << DROPPED) + ((BIAS as u32 - LARGEST) << 23)) - lift;
        values[i] = f32::from_bits((size * scale).to_bits() | sign);
    }
    values
}

/// Rounds the values of a block by chance, each of [`DROPPED`] bits. A square that is not 0 does not
/// become 0: the mean is divided by its root.
#[inline(always)]
fn write<const LARGEST: u32>(
    values: &[f32; BLOCK],
    block: &mut [u8; BLOCK_BYTES],
    chances: [u32; BLOCK],
) {
    // Sizes compare as their bits do, and the compiler vectorises that.
    let sizes = values.iter().map(|value| value.abs().to_bits());
    let largest = f32::from_bits(sizes.fold(0, u32::max));
    // The largest code is 15/8 of a power of two, which must not become 2.
    let above = (largest * 1.066_666_5).to_bits() >> 23;
    let exponent = (above as i32 - BIAS).clamp(*EXPONENTS.start(), *EXPONENTS.end());
    let inverse = power(-exponent);
    let least_normal = power(1 - LARGEST as i32);
    let codes = &mut block[1..];
    for i in 0..BLOCK {
        let size = values[i].abs() * inverse;
        let small = size < least_normal;
        let (lift, lifted) = if small { (least_normal, NORMAL) } else { (0.0, 0) };
        let bits = ((size + lift).to_bits() + chances[i]) >> DROPPED;
        let code = bits - ((BIAS as u32 - LARGEST) << MANTISSA) - lifted;
        codes[i] = match LARGEST {
            SIGNED => code.min(0x7F) as u8 | (values[i].to_bits() >> 24 & 0x80) as u8,
            _ => code.min(0xFF).max(u32::from(values[i] > 0.0)) as u8,
        };
    }
    block[0] = (exponent + BIAS) as u8;
}

/// `2^exponent`, of an exponent that an f32 can have.
#[inline(always)]
const fn power(exponent: i32) -> f32 {
    f32::from_bits(((exponent + BIAS) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::super::tests::close;
    use super::*;

    fn step(number: u32) -> AdamW {
        AdamW {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            step: number,
            gradient_scale: 1.0,
        }
    }

    #[test]
    fn adamw_follows_the_formula() {
        let pool = Pool::new(1);
        let (mut p, mut m, mut v) = (vec![1.0], vec![0.0], vec![0.0]);
        let step = AdamW {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.5,
            step: 1,
            gradient_scale: 0.5,
        };
        adamw(&pool, &mut p, &[4.0], &mut m, &mut v, step);
        // The first step moves by the learning rate, after the decay of lr · wd = 5 %.
        close(&p, &[0.95 - 0.1], 1e-6);
        close(&m, &[0.2], 1e-6);
        close(&v, &[0.04], 1e-6);
    }

    #[test]
    fn every_code_is_read_and_written_again() {
        fn check<const LARGEST: u32>() {
            for exponent in [20, 127, 200] {
                for first in (0..=255).step_by(BLOCK) {
                    let mut block = [exponent; BLOCK_BYTES];
                    (0..BLOCK).for_each(|i| block[1 + i] = (first + i) as u8);
                    // The largest there is, so that the exponent is the same again.
                    block[BLOCK] = if LARGEST == SIGNED { 0x7F } else { 0xFF };
                    let values = read::<LARGEST>(&block);
                    for chance in [0, (1 << DROPPED) - 1] {
                        let mut found = [0; BLOCK_BYTES];
                        write::<LARGEST>(&values, &mut found, [chance; BLOCK]);
                        assert_eq!(found, block, "of {exponent}, from {first}");
                    }
                }
            }
        }
        check::<SIGNED>();
        check::<UNSIGNED>();
    }

    #[test]
    fn rounding_is_right_on_average_and_near_each_time() {
        fn check<const LARGEST: u32>(values: [f32; BLOCK]) {
            let rounds = 4000;
            let mut sums = [0.0f64; BLOCK];
            for round in 0..rounds {
                let mut block = [0; BLOCK_BYTES];
                let bits = chances(77, round).map(|chance| chance >> (32 - DROPPED));
                write::<LARGEST>(&values, &mut block, bits);
                for ((sum, value), found) in
                    sums.iter_mut().zip(values).zip(read::<LARGEST>(&block))
                {
                    let spacing = (value.abs() / 8.0).max(values[0] * power(-(LARGEST as i32)));
                    assert!((found - value).abs() <= spacing, "{found} of {value}");
                    *sum += f64::from(found);
                }
            }
            for (sum, value) in sums.iter().zip(values) {
                let (mean, value) = (sum / f64::from(rounds), f64::from(value));
                assert!((mean - value).abs() < 4e-3 * value.abs() + 1e-7, "{mean} of {value}");
            }
        }
        let values = std::array::from_fn(|i| (1.0 + i as f32).powi(-2) * 3.3);
        check::<UNSIGNED>(values);
        check::<SIGNED>(std::array::from_fn(|i| if i % 2 == 0 { values[i] } else { -values[i] }));
    }

    #[test]
    fn means_in_bytes_follow_those_in_f32() {
        let pool = Pool::new(2);
        // More than a task, and no whole number of blocks; gradients of very different sizes.
        let len = TASK_VALUES + 3 * BLOCK + 5;
        let gradient = |i: usize, t: u32| {
            let size = 10f32.powi(-((i % 4) as i32));
            size * (1.0 + (i as f32 * 0.7 + t as f32 * 1.3).sin())
        };
        let (mut p, mut m, mut v) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        let mut q = p.clone();
        let (mut mean, mut square) = (vec![0; bytes_of_means(len)], vec![0; bytes_of_means(len)]);
        for t in 1..=40 {
            let g: Vec<f32> = (0..len).map(|i| gradient(i, t)).collect();
            adamw(&pool, &mut p, &g, &mut m, &mut v, step(t));
            adamw_in_bytes(&pool, &mut q, &g, &mut mean, &mut square, step(t));
        }
        let errors = p.iter().zip(&q).map(|(p, q)| f64::from((p - q) / p));
        let errors: Vec<f64> = errors.collect();
        let deviation = (errors.iter().map(|e| e * e).sum::<f64>() / len as f64).sqrt();
        let bias = errors.iter().sum::<f64>() / len as f64;
        assert!(deviation < 0.05 && bias.abs() < 0.01, "deviation {deviation}, bias {bias}");
        // A gradient that is gone leaves means that shrink to nothing, and no weight that runs away.
        let before = q.clone();
        for t in 41..=300 {
            adamw_in_bytes(&pool, &mut q, &vec![0.0; len], &mut mean, &mut square, step(t));
        }
        let moved = q.iter().zip(&before).map(|(q, p)| (q - p).abs()).fold(0.0, f32::max);
        assert!(moved < 0.2, "moved by {moved}");
    }
}
