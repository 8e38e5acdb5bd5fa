//! Losses over the vocabulary, with their gradients.

use crate::Lanes;
use crate::cpu::multiversion;
use crate::gemm::lanes_of_row;
use crate::logits::log_sum_exp;
use crate::ops::{exp, lane_sum};
use crate::pool::{Pool, SendPtr};

/// What a row of logits is to come near: a token, or another model's probabilities, or both.
#[derive(Clone, Copy, Debug, Default)]
pub struct Goal {
    /// The token, and the weight of the cross-entropy.
    pub target: Option<(u32, f32)>,
    /// The row of the reference, and the weight of KL(reference ‖ model).
    pub reference: Option<(usize, f32)>,
}

/// Losses of a row, in nats; zero where the row has no such goal.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct RowLoss {
    pub cross_entropy: f32,
    pub divergence: f32,
}

/// The losses of each row. The gradient of their weighted sum with respect to the logits goes to the
/// rows of `gradient` from `first` on; the logits and the reference are written over.
///
/// **Shapes**: gradient `[rows, vocab]`; logits `[goals, vocab]`; reference `[rows, vocab]`, logits
/// too, each row for one goal at most.
///
/// # Panics
/// If a length does not fit, or a goal names a token or row that there is not.
pub fn losses(
    pool: &Pool,
    (gradient, first): (&mut Lanes, usize),
    logits: &mut [f32],
    reference: &mut [f32],
    goals: &[Goal],
) -> Vec<RowLoss> {
    let vocab = gradient.cols();
    let references = reference.len() / vocab;
    assert!(logits.len() == vocab * goals.len() && reference.len() == references * vocab);
    assert!(goals.iter().all(|g| g.target.is_none_or(|(token, _)| (token as usize) < vocab)));
    let mut used = vec![false; references];
    for (row, _) in goals.iter().filter_map(|goal| goal.reference) {
        assert!(!std::mem::replace(&mut used[row], true), "reference {row} has two goals");
    }
    let (precision, steps) = (gradient.precision(), gradient.steps());
    let out = &mut gradient.lanes_mut()[first * steps..(first + goals.len()) * steps];
    let out = SendPtr(out.as_mut_ptr());
    let reference = SendPtr(reference.as_mut_ptr());
    let mut losses = vec![RowLoss::default(); goals.len()];
    let found = SendPtr(losses.as_mut_ptr());
    pool.pieces(logits, vocab, |row, logits| {
        let goal = &goals[row];
        let reference = goal.reference.map(|(row, weight)| {
            // SAFETY: rows are as long as the vocabulary, and this one is this task's alone.
            let row =
                unsafe { std::slice::from_raw_parts_mut(reference.get().add(row * vocab), vocab) };
            (row, weight)
        });
        let loss = row_loss(logits, goal.target, reference);
        // SAFETY: each row's lanes and losses, of which there are as many as goals, belong to one
        // task.
        unsafe {
            let lanes = std::slice::from_raw_parts_mut(out.get().add(row * steps), steps);
            lanes_of_row(precision, logits, lanes);
            *found.get().add(row) = loss;
        }
    });
    losses
}

/// The losses of a row, whose logits become the gradient.
fn row_loss(
    logits: &mut [f32],
    target: Option<(u32, f32)>,
    reference: Option<(&mut [f32], f32)>,
) -> RowLoss {
    let (token, weight) = target.map_or((0, 0.0), |(token, weight)| (token as usize, weight));
    let target_logit = logits[token];
    let log_sum = log_sum_exp(logits);
    let mut loss = RowLoss::default();
    match reference {
        None => to_probabilities(logits, log_sum, weight),
        Some((reference, pull)) => {
            loss.divergence = divergence_row(reference, logits, log_sum, weight, pull);
        }
    }
    if target.is_some() {
        logits[token] -= weight;
        loss.cross_entropy = log_sum - target_logit;
    }
    loss
}

multiversion! {
fn to_probabilities(logits: &mut [f32], log_sum: f32, weight: f32) {
    for logit in logits {
        *logit = exp(*logit - log_sum) * weight;
    }
}
}

multiversion! {
/// The divergence of a row, whose logits become its gradient times `pull`, and their probabilities
/// times `weight`.
fn divergence_row(
    reference: &mut [f32],
    logits: &mut [f32],
    log_q: f32,
    weight: f32,
    pull: f32,
) -> f32 {
    let log_p = log_sum_exp(reference);
    let len = logits.len();
    let reference = &mut reference[..len];
    let kl = lane_sum([&*reference, &*logits], |[reference, logit]| {
        let p = reference - log_p;
        exp(p) * (p - (logit - log_q))
    });
    for i in 0..len {
        let (p, q) = (exp(reference[i] - log_p), exp(logits[i] - log_q));
        logits[i] = q * (weight + pull) - p * pull;
    }
    kl
}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Precision;

    fn wave(len: usize, phase: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 1.7 + phase).sin() * 4.0).collect()
    }

    fn log_softmax(logits: &[f32]) -> Vec<f64> {
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        logits.iter().map(|&l| f64::from(l) - sum.ln()).collect()
    }

    /// Losses and gradient.
    fn run(vocab: usize, logits: &[f32], base: &[f32], goals: &[Goal]) -> (Vec<RowLoss>, Vec<f32>) {
        let pool = Pool::new(2);
        let mut gradient = Lanes::unset(&pool, Precision::F32, goals.len() + 1, vocab);
        let (mut logits, mut base) = (logits.to_vec(), base.to_vec());
        let losses = losses(&pool, (&mut gradient, 1), &mut logits, &mut base, goals);
        (losses, crate::buffer::as_floats(gradient.lanes())[vocab..].to_vec())
    }

    #[test]
    fn cross_entropy_and_its_gradient() {
        let logits = wave(3 * 37, 0.0);
        let targets = [(5, 0.5), (0, 1.0), (36, 2.0)];
        let goals = targets.map(|target| Goal { target: Some(target), reference: None });
        let (losses, d) = run(37, &logits, &[], &goals);
        for (row, (target, weight)) in targets.into_iter().enumerate() {
            let expected = log_softmax(&logits[row * 37..][..37]);
            let loss = f64::from(losses[row].cross_entropy);
            assert!((loss + expected[target as usize]).abs() < 1e-5);
            assert_eq!(losses[row].divergence, 0.0);
            for i in 0..37 {
                let hot = if i == target as usize { 1.0 } else { 0.0 };
                let gradient = (expected[i].exp() - hot) * f64::from(weight);
                assert!((f64::from(d[row * 37 + i]) - gradient).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn divergence_is_zero_on_itself_and_right_elsewhere() {
        let (p, q) = (wave(40, 0.0), wave(40, 0.5));
        let goal = Goal { target: None, reference: Some((0, 1.0)) };
        let (losses, same) = run(40, &p, &p, &[goal]);
        assert!(losses[0].divergence.abs() < 1e-6 && same.iter().all(|d| d.abs() < 1e-6));
        let (losses, d) = run(40, &q, &p, &[goal]);
        let (lp, lq) = (log_softmax(&p), log_softmax(&q));
        let expected: f64 = lp.iter().zip(&lq).map(|(p, q)| p.exp() * (p - q)).sum();
        assert!((f64::from(losses[0].divergence) - expected).abs() < 1e-5);
        assert!((f64::from(d[3]) - (lq[3].exp() - lp[3].exp())).abs() < 1e-6);
        assert_eq!(losses[0].cross_entropy, 0.0);
    }

    #[test]
    fn goals_of_one_row_add_up() {
        let (p, q) = (wave(2 * 40, 0.0), wave(2 * 40, 0.5));
        let (target, reference) = (Some((7, 0.3)), Some((1, 0.7)));
        // The second row's goals, beside a row that has none.
        let goals = |target, reference| [Goal::default(), Goal { target, reference }];
        let (both, d) = run(40, &q, &p, &goals(target, reference));
        let (first, d_first) = run(40, &q, &p, &goals(target, None));
        let (second, d_second) = run(40, &q, &p, &goals(None, reference));
        assert_eq!(both[1].cross_entropy, first[1].cross_entropy);
        assert_eq!(both[1].divergence, second[1].divergence);
        for (i, d) in d.iter().enumerate() {
            assert!((d - d_first[i] - d_second[i]).abs() < 1e-6, "{i}");
        }
        assert_eq!((both[0], &d[..40]), (RowLoss::default(), [0.0; 40].as_slice()));
    }
}
