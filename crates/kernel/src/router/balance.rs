//! The balance loss by sequence: `α · Σ_i f_i · P_i`, where `f_i` is how often expert i is among a
//! token's best, as a multiple of its even share, and `P_i` the mean of its normalised score.
//!
//! **Source**: DeepSeek-AI 2024, arXiv 2412.19437, eq. 17 to 20. There the best are those of the
//! scores alone, whatever bias and groups then choose; and `f_i` has no gradient.

use std::ops::Range;

use super::{Router, TINY, TOKENS};
use crate::pool::Pool;

/// The loss of some sequences, and what its gradient needs.
#[derive(Clone, Debug)]
pub struct SequenceBalance {
    /// Mean of `Σ_i f_i · P_i` over the tokens: 1 where experts are used evenly, and
    /// `experts / top_k` where the same ones always are.
    pub loss: f32,
    /// `f` of each sequence.
    shares: Vec<Vec<f32>>,
    /// The sequence of each token.
    of: Vec<u32>,
}

impl Router {
    /// The balance loss of whole sequences, which must cover all tokens, in their order.
    ///
    /// **Shapes**: scores `[tokens, experts]`, those that [`Router::choose`] left.
    ///
    /// # Panics
    /// If the sequences do not cover the tokens.
    pub fn sequence_balance(
        &self,
        pool: &Pool,
        scores: &[f32],
        sequences: &[Range<usize>],
    ) -> SequenceBalance {
        let experts = self.experts;
        let tokens = scores.len() / experts;
        assert!(
            sequences.iter().map(ExactSizeIterator::len).sum::<usize>() == tokens,
            "sequences of other than {tokens} tokens"
        );
        // Each sequence by itself, so that sums do not depend on the threads.
        let mut parts: Vec<(Vec<f32>, f64)> = vec![(Vec::new(), 0.0); sequences.len()];
        pool.pieces(&mut parts, 1, |index, part| {
            let rows = &scores[sequences[index].start * experts..sequences[index].end * experts];
            part[0] = self.sequence(rows);
        });
        let of = sequences.iter().enumerate();
        let of = of.flat_map(|(index, range)| std::iter::repeat_n(index as u32, range.len()));
        let sum: f64 = parts.iter().map(|(_, loss)| loss).sum();
        SequenceBalance {
            loss: (sum / tokens.max(1) as f64) as f32,
            of: of.collect(),
            shares: parts.into_iter().map(|(shares, _)| shares).collect(),
        }
    }

    /// `f` of one sequence, and its loss times its tokens.
    fn sequence(&self, scores: &[f32]) -> (Vec<f32>, f64) {
        let Router { experts, top_k, .. } = *self;
        let tokens = scores.len() / experts;
        let (mut counts, mut means) = (vec![0.0f32; experts], vec![0.0f64; experts]);
        let mut order: Vec<usize> = Vec::with_capacity(experts);
        for scores in scores.chunks_exact(experts) {
            order.clear();
            order.extend(0..experts);
            // Among equals the first; a score that is no number is never a reason to stop.
            let better = |&a: &usize, &b: &usize| scores[b].total_cmp(&scores[a]).then(a.cmp(&b));
            if top_k < experts {
                order.select_nth_unstable_by(top_k - 1, better);
            }
            order[..top_k].iter().for_each(|&expert| counts[expert] += 1.0);
            let total = scores.iter().sum::<f32>() + TINY;
            means.iter_mut().zip(scores).for_each(|(mean, s)| *mean += f64::from(s / total));
        }
        let factor = experts as f32 / (top_k * tokens.max(1)) as f32;
        counts.iter_mut().for_each(|count| *count *= factor);
        let loss = counts.iter().zip(&means).map(|(&f, mean)| f64::from(f) * mean).sum();
        (counts, loss)
    }

    /// Adds `weight` times the gradient of the loss, summed over the tokens, to that of the logits.
    ///
    /// **Shapes**: d_logits, scores `[tokens, experts]`.
    pub fn sequence_balance_backward(
        &self,
        pool: &Pool,
        d_logits: &mut [f32],
        scores: &[f32],
        balance: &SequenceBalance,
        weight: f32,
    ) {
        let experts = self.experts;
        assert!(d_logits.len() == scores.len() && balance.of.len() * experts == scores.len());
        pool.pieces(d_logits, TOKENS * experts, |index, d| {
            for (row, d) in d.chunks_exact_mut(experts).enumerate() {
                let token = index * TOKENS + row;
                let scores = &scores[token * experts..][..experts];
                let shares = &balance.shares[balance.of[token] as usize];
                // With respect to the scores, which are divided by their sum: (f − Σ f·s / Σ s) / Σ s.
                let total = scores.iter().sum::<f32>() + TINY;
                let along: f32 = scores.iter().zip(shares).map(|(s, f)| s * f).sum();
                for ((d, &score), share) in d.iter_mut().zip(scores).zip(shares) {
                    let d_score = (share - along / total) / total;
                    *d += weight * d_score * self.slope(score);
                }
            }
        });
    }

    /// The derivative of a score with respect to its logit, where those of the other logits add up to
    /// nothing: a softmax's row of scores has the sum 1 already.
    fn slope(&self, score: f32) -> f32 {
        match self.scores {
            super::Scores::Softmax => score,
            super::Scores::Sigmoid => score * (1.0 - score),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scores;

    const EXPERTS: usize = 6;

    fn router(scores: Scores) -> Router {
        Router { experts: EXPERTS, top_k: 2, scores, normalise: true, scale: 1.3, groups: None }
    }

    fn loss(pool: &Pool, router: Router, logits: &[f32], sequences: &[Range<usize>]) -> f64 {
        let mut scores = logits.to_vec();
        router.choose(pool, &mut scores, None);
        // In f64, so that small differences are seen.
        let parts = sequences
            .iter()
            .map(|range| router.sequence(&scores[range.start * EXPERTS..range.end * EXPERTS]).1);
        parts.sum()
    }

    #[test]
    fn the_gradient_is_the_numeric_one() {
        let tokens = TOKENS + 9;
        let sequences = [0..5, 5..TOKENS + 2, TOKENS + 2..tokens];
        let logits: Vec<f32> =
            (0..tokens * EXPERTS).map(|i| ((i * i) as f32 * 0.37).sin() * 2.0).collect();
        let pool = Pool::new(2);
        for router in [router(Scores::Sigmoid), router(Scores::Softmax)] {
            let mut scores = logits.clone();
            router.choose(&pool, &mut scores, None);
            let balance = router.sequence_balance(&pool, &scores, &sequences);
            let whole = loss(&pool, router, &logits, &sequences) / tokens as f64;
            assert!((f64::from(balance.loss) - whole).abs() < 1e-5);
            let mut d = vec![2.0; logits.len()];
            router.sequence_balance_backward(&pool, &mut d, &scores, &balance, 1.0);
            for i in (0..logits.len()).step_by(7) {
                let at = |offset: f32| {
                    let mut moved = logits.clone();
                    moved[i] += offset;
                    loss(&pool, router, &moved, &sequences)
                };
                let numeric = (at(5e-3) - at(-5e-3)) / 1e-2;
                let found = f64::from(d[i]) - 2.0;
                assert!((found - numeric).abs() < 1e-3, "{router:?} {i}: {found} {numeric}");
            }
        }
    }

    #[test]
    fn even_use_is_one_and_the_same_experts_again_are_more() {
        let pool = Pool::new(1);
        let router = router(Scores::Sigmoid);
        let row = |best: [usize; 2]| {
            (0..EXPERTS).map(move |e| if best.contains(&e) { 1.0 } else { 1e-9 })
        };
        let even: Vec<f32> = [[0, 1], [2, 3], [4, 5]].into_iter().flat_map(row).collect();
        let same: Vec<f32> = [[0, 1]; 3].into_iter().flat_map(row).collect();
        let loss = |scores: &[f32], sequences: &[Range<usize>]| {
            router.sequence_balance(&pool, scores, sequences).loss
        };
        let whole = std::slice::from_ref(&(0..3));
        assert!((loss(&even, whole) - 1.0).abs() < 1e-4);
        assert!((loss(&same, whole) - 3.0).abs() < 1e-4);
        let apart = [0..1, 1..2, 2..3];
        assert!((loss(&even, &apart) - 3.0).abs() < 1e-4, "each sequence is balanced by itself");
    }
}
