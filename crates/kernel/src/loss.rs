//! Losses over the vocabulary, with their gradients written over the logits.

use crate::cpu::multiversion;
use crate::logits::log_sum_exp;
use crate::ops::{exp, lane_sum};
use crate::pool::{Pool, SendPtr};

/// Cross-entropy of each row, in nats. With `weights`, the logits become the gradient of
/// `Σ weights[t] · loss[t]`; without, they stay.
///
/// **Shapes**: logits `[tokens, vocab]`; targets, weights, losses `[tokens]`.
pub fn cross_entropy(
    pool: &Pool,
    logits: &mut [f32],
    targets: &[u32],
    weights: Option<&[f32]>,
    losses: &mut [f32],
) {
    let vocab = logits.len() / targets.len().max(1);
    assert!(logits.len() == vocab * targets.len() && losses.len() == targets.len());
    assert!(weights.is_none_or(|w| w.len() == targets.len()));
    assert!(targets.iter().all(|&t| (t as usize) < vocab), "a target lies beyond {vocab}");
    let losses = SendPtr(losses.as_mut_ptr());
    pool.pieces(logits, vocab, |row, logits| {
        let target = targets[row] as usize;
        let target_logit = logits[target];
        let log_sum = log_sum_exp(logits);
        if let Some(weights) = weights {
            to_probabilities(logits, log_sum, weights[row]);
            logits[target] -= weights[row];
        }
        // SAFETY: each row is handled by one task, and `losses` has as many values as rows.
        unsafe { *losses.get().add(row) = log_sum - target_logit };
    });
}

/// Kullback-Leibler divergence KL(reference ‖ model) of each row, in nats. The model's logits
/// become the gradient of `Σ weights[t] · KL[t]`; the reference's are overwritten.
///
/// **Shapes**: reference, logits `[tokens, vocab]`; weights, losses `[tokens]`.
pub fn kl_divergence(
    pool: &Pool,
    reference: &mut [f32],
    logits: &mut [f32],
    weights: &[f32],
    losses: &mut [f32],
) {
    let vocab = logits.len() / weights.len().max(1);
    assert!(logits.len() == vocab * weights.len() && reference.len() == logits.len());
    assert_eq!(losses.len(), weights.len());
    let losses = SendPtr(losses.as_mut_ptr());
    let reference = SendPtr(reference.as_mut_ptr());
    pool.pieces(logits, vocab, |row, logits| {
        // SAFETY: row `row` of the reference, as long as the row of the logits; one task each.
        let reference =
            unsafe { std::slice::from_raw_parts_mut(reference.get().add(row * vocab), vocab) };
        let kl = divergence_row(reference, logits, weights[row]);
        // SAFETY: as in `cross_entropy`.
        unsafe { *losses.get().add(row) = kl };
    });
}

multiversion! {
fn to_probabilities(logits: &mut [f32], log_sum: f32, weight: f32) {
    for logit in logits {
        *logit = exp(*logit - log_sum) * weight;
    }
}
}

multiversion! {
fn divergence_row(reference: &mut [f32], logits: &mut [f32], weight: f32) -> f32 {
    let (log_p, log_q) = (log_sum_exp(reference), log_sum_exp(logits));
    let len = logits.len();
    let reference = &mut reference[..len];
    let kl = lane_sum(len, |i| {
        let p = reference[i] - log_p;
        exp(p) * (p - (logits[i] - log_q))
    });
    for i in 0..len {
        logits[i] = (exp(logits[i] - log_q) - exp(reference[i] - log_p)) * weight;
    }
    kl
}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(len: usize, phase: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 1.7 + phase).sin() * 4.0).collect()
    }

    fn log_softmax(logits: &[f32]) -> Vec<f64> {
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        logits.iter().map(|&l| f64::from(l) - sum.ln()).collect()
    }

    #[test]
    fn cross_entropy_and_its_gradient() {
        let pool = Pool::new(2);
        let logits = wave(3 * 37, 0.0);
        let (targets, weights) = ([5, 0, 36], [0.5, 1.0, 2.0]);
        let (mut d, mut losses) = (logits.clone(), [0.0; 3]);
        cross_entropy(&pool, &mut d, &targets, Some(&weights), &mut losses);
        for row in 0..3 {
            let expected = log_softmax(&logits[row * 37..][..37]);
            let target = targets[row] as usize;
            assert!((f64::from(losses[row]) + expected[target]).abs() < 1e-5);
            for i in 0..37 {
                let hot = if i == target { 1.0 } else { 0.0 };
                let gradient = (expected[i].exp() - hot) * f64::from(weights[row]);
                assert!((f64::from(d[row * 37 + i]) - gradient).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn divergence_is_zero_on_itself_and_right_elsewhere() {
        let pool = Pool::new(1);
        let (p, q) = (wave(40, 0.0), wave(40, 0.5));
        let (mut reference, mut same, mut loss) = (p.clone(), p.clone(), [1.0]);
        kl_divergence(&pool, &mut reference, &mut same, &[1.0], &mut loss);
        assert!(loss[0].abs() < 1e-6 && same.iter().all(|d| d.abs() < 1e-6));
        let (mut reference, mut d) = (p.clone(), q.clone());
        kl_divergence(&pool, &mut reference, &mut d, &[1.0], &mut loss);
        let (lp, lq) = (log_softmax(&p), log_softmax(&q));
        let expected: f64 = lp.iter().zip(&lq).map(|(p, q)| p.exp() * (p - q)).sum();
        assert!((f64::from(loss[0]) - expected).abs() < 1e-5);
        assert!((f64::from(d[3]) - (lq[3].exp() - lp[3].exp())).abs() < 1e-6);
    }
}
