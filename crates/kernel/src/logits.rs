//! What is asked of one row of logits.

use crate::cpu::multiversion;
use crate::ops::{exp, lane_sum};

/// Exponentials that are added in f32 before their sum is added in f64.
const BLOCK: usize = 4096;

multiversion! {
/// The logarithm of the sum of exponentials, in nats; the maximum where that is infinite.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = largest_value(logits);
    if max.is_infinite() {
        return max;
    }
    let mut sum = 0.0;
    for block in logits.chunks(BLOCK) {
        sum += f64::from(lane_sum([block], |[logit]| exp(logit - max)));
    }
    (f64::from(max) + sum.ln()) as f32
}
}

/// The first of the largest logits, and its value; none where a logit is not a number or the
/// largest is infinite.
pub fn largest(logits: &[f32]) -> Option<(usize, f32)> {
    let value = checked_largest(logits);
    if !value.is_finite() {
        return None;
    }
    let at = logits.iter().position(|logit| *logit == value)?;
    Some((at, value))
}

multiversion! {
/// NaN where a logit is.
fn checked_largest(logits: &[f32]) -> f32 {
    let mut faults = [0u32; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            faults[lane] |= u32::from(chunk[lane].is_nan());
        }
    }
    if faults.iter().any(|fault| *fault != 0) || rest.iter().any(|logit| logit.is_nan()) {
        return f32::NAN;
    }
    largest_value(logits)
}
}

/// The largest value, in lanes; a value that is no number is passed over.
#[inline(always)]
pub(crate) fn largest_value(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sums_are_stable_and_exact() {
        let check = |logits: &[f32], expected: f64| {
            let found = f64::from(log_sum_exp(logits));
            assert!((found - expected).abs() < 1e-4, "{found} for {expected}");
        };
        check(&[1000.0, 1000.0], 1000.0 + 2f64.ln());
        check(&[-1000.0, -1001.0], -1000.0 + 0.313_261_7);
        let long: Vec<f32> = (0..50_001).map(|i| (i as f32 * 0.37).sin() * 8.0).collect();
        check(&long, long.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln());
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 20]), f32::NEG_INFINITY);
    }

    #[test]
    fn the_first_of_the_largest_is_found() {
        let mut logits = vec![-1.0; 35];
        for at in [34, 33, 17, 5] {
            logits[at] = 2.0;
            assert_eq!(largest(&logits), Some((at, 2.0)));
        }
        for (at, value) in [(3, f32::NAN), (34, f32::NAN), (3, f32::INFINITY)] {
            let mut broken = logits.clone();
            broken[at] = value;
            assert_eq!(largest(&broken), None);
        }
        assert_eq!(largest(&[f32::NEG_INFINITY; 2]), None);
    }
}
