//! Which experts a token goes to, and with which weights.

mod balance;

use std::ops::Range;

use crate::cpu::multiversion;
use crate::ops::{exp, sigmoid};
use crate::pool::{Pool, SendPtr};

pub use balance::SequenceBalance;

/// Tokens of a task.
const TOKENS: usize = 64;

/// How a token's logits become the weights of its experts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Router {
    pub experts: usize,
    pub top_k: usize,
    pub scores: Scores,
    /// Whether the weights of the chosen experts add up to one, before they are scaled.
    pub normalise: bool,
    /// What all weights are multiplied by.
    pub scale: f32,
    /// Where given, a token's experts all belong to its best groups.
    pub groups: Option<Groups>,
}

/// Experts in groups of equal size, in their order.
///
/// **Source**: DeepSeek-AI 2024, arXiv 2405.04434, section 2.2.2 (a group's score is its best
/// expert's); arXiv 2412.19437, section 2.1.2 (with sigmoid scores, the sum of its best two).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Groups {
    /// Divides the number of experts.
    pub count: usize,
    /// Groups of each token.
    pub top_k: usize,
}

/// What an expert's score is, before the best are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scores {
    /// **Source**: Shazeer et al. 2017, arXiv 1701.06538, section 2.1, with softmax before top-k.
    Softmax,
    /// **Source**: DeepSeek-AI 2024, arXiv 2412.19437, eq. 13 to 16.
    Sigmoid,
}

/// The experts of each token.
///
/// **Shapes**: both `[tokens, top_k]`.
pub struct Choice {
    pub experts: Vec<u32>,
    pub weights: Vec<f32>,
}

impl Router {
    /// Chooses the experts with the highest scores; among equals the first. The scores replace the
    /// logits. `bias` changes which are chosen, not how much they weigh.
    ///
    /// **Shapes**: logits `[tokens, experts]`; bias `[experts]`.
    ///
    /// # Panics
    /// If a length does not fit, or fewer experts are there than are to be chosen.
    pub fn choose(&self, pool: &Pool, logits: &mut [f32], bias: Option<&[f32]>) -> Choice {
        let Router { experts, top_k, .. } = *self;
        assert!((1..=experts).contains(&top_k), "{top_k} of {experts} experts");
        if let Some(Groups { count, top_k: groups }) = self.groups {
            assert!(experts.is_multiple_of(count) && (1..=count).contains(&groups));
            assert!(top_k <= experts / count * groups, "{top_k} experts of {groups} groups");
        }
        assert!(logits.len().is_multiple_of(experts) && bias.is_none_or(|b| b.len() == experts));
        let chosen = logits.len() / experts * top_k;
        let mut choice = Choice { experts: vec![0; chosen], weights: vec![0.0; chosen] };
        let (to, weights) =
            (SendPtr(choice.experts.as_mut_ptr()), SendPtr(choice.weights.as_mut_ptr()));
        pool.pieces(logits, TOKENS * experts, |index, scores| {
            let at = index * TOKENS * top_k;
            let len = scores.len() / experts * top_k;
            // SAFETY: the places of this task's tokens, within both lists, which no other has.
            let (to, weights) = unsafe {
                (
                    std::slice::from_raw_parts_mut(to.get().add(at), len),
                    std::slice::from_raw_parts_mut(weights.get().add(at), len),
                )
            };
            choose_rows(self, scores, bias, to, weights);
        });
        choice
    }

    /// The gradient with respect to the logits, given `d_weights` with respect to the weights and
    /// the scores that [`Router::choose`] left.
    ///
    /// **Shapes**: d_logits, scores `[tokens, experts]` (d_logits is written over); d_weights
    /// `[tokens, top_k]`.
    pub fn backward(
        &self,
        pool: &Pool,
        d_logits: &mut [f32],
        scores: &[f32],
        choice: &Choice,
        d_weights: &[f32],
    ) {
        let Router { experts, top_k, .. } = *self;
        assert!(d_logits.len() == scores.len() && choice.experts.len() == d_weights.len());
        assert_eq!(d_logits.len() / experts * top_k, d_weights.len());
        pool.pieces(d_logits, TOKENS * experts, |index, d| {
            let tokens = index * TOKENS..index * TOKENS + d.len() / experts;
            let places = |size: usize| -> Range<usize> { tokens.start * size..tokens.end * size };
            let (chosen, d_weights) = (&choice.experts[places(top_k)], &d_weights[places(top_k)]);
            backward_rows(self, d, &scores[places(experts)], chosen, d_weights);
        });
    }
}

multiversion! {
fn choose_rows(
    router: &Router,
    scores: &mut [f32],
    bias: Option<&[f32]>,
    to: &mut [u32],
    weights: &mut [f32],
) {
    let (experts, top_k) = (router.experts, router.top_k);
    let mut keys = vec![0.0; experts];
    for (row, scores) in scores.chunks_exact_mut(experts).enumerate() {
        match router.scores {
            Scores::Softmax => {
                let max = scores.iter().fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
                let mut sum = 0.0;
                for score in scores.iter_mut() {
                    *score = exp(*score - max);
                    sum += *score;
                }
                for score in scores.iter_mut() {
                    *score /= sum;
                }
            }
            Scores::Sigmoid => {
                for score in scores.iter_mut() {
                    *score = sigmoid(*score);
                }
            }
        }
        keys.copy_from_slice(scores);
        if let Some(bias) = bias {
            for expert in 0..experts {
                keys[expert] += bias[expert];
            }
        }
        if let Some(groups) = router.groups {
            hide_groups(&mut keys, groups, router.scores);
        }
        let (to, weights) =
            (&mut to[row * top_k..][..top_k], &mut weights[row * top_k..][..top_k]);
        let mut sum = 0.0;
        for slot in 0..top_k {
            let mut best = 0;
            for expert in 1..experts {
                if keys[expert] > keys[best] {
                    best = expert;
                }
            }
            // Not chosen again; a key that is no number is never greater.
            keys[best] = f32::NEG_INFINITY;
            to[slot] = best as u32;
            weights[slot] = scores[best];
            sum += scores[best];
        }
        let factor = router.scale / if router.normalise { sum + TINY } else { 1.0 };
        for weight in weights {
            *weight *= factor;
        }
    }
}
}

/// Hides the experts of all groups but the best; among equals the first is better.
fn hide_groups(keys: &mut [f32], groups: Groups, scores: Scores) {
    let size = keys.len() / groups.count;
    let score = |keys: &[f32]| {
        let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &key in keys {
            if key > best {
                (best, second) = (key, best);
            } else if key > second {
                second = key;
            }
        }
        match scores {
            Scores::Softmax => best,
            // A group of one has no second.
            Scores::Sigmoid => best + if size > 1 { second } else { 0.0 },
        }
    };
    let of: Vec<f32> = keys.chunks_exact(size).map(score).collect();
    for (group, keys) in keys.chunks_exact_mut(size).enumerate() {
        let better =
            |&other: &usize| of[other] > of[group] || (of[other] == of[group] && other < group);
        if (0..groups.count).filter(better).count() >= groups.top_k {
            keys.fill(f32::NEG_INFINITY);
        }
    }
}

/// Keeps scores that are all zero from being divided by their sum.
const TINY: f32 = 1e-20;

multiversion! {
fn backward_rows(
    router: &Router,
    d: &mut [f32],
    scores: &[f32],
    chosen: &[u32],
    d_weights: &[f32],
) {
    let (experts, top_k) = (router.experts, router.top_k);
    for (row, d) in d.chunks_exact_mut(experts).enumerate() {
        let scores = &scores[row * experts..][..experts];
        let (chosen, d_weights) = (&chosen[row * top_k..][..top_k], &d_weights[row * top_k..]);
        d.fill(0.0);
        // With respect to the scores of those chosen …
        let (mut sum, mut along) = (0.0, 0.0);
        for slot in 0..top_k {
            let score = scores[chosen[slot] as usize];
            sum += score;
            along += d_weights[slot] * score;
        }
        let total = sum + TINY;
        for slot in 0..top_k {
            let d_score = match router.normalise {
                true => (d_weights[slot] - along / total) / total,
                false => d_weights[slot],
            };
            d[chosen[slot] as usize] = d_score * router.scale;
        }
        // … and with respect to all logits.
        match router.scores {
            Scores::Softmax => {
                let mut along = 0.0;
                for expert in 0..experts {
                    along += d[expert] * scores[expert];
                }
                for expert in 0..experts {
                    d[expert] = scores[expert] * (d[expert] - along);
                }
            }
            Scores::Sigmoid => {
                for expert in 0..experts {
                    d[expert] *= scores[expert] * (1.0 - scores[expert]);
                }
            }
        }
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPERTS: usize = 7;

    fn router(scores: Scores, normalise: bool) -> Router {
        Router { experts: EXPERTS, top_k: 3, scores, normalise, scale: 1.7, groups: None }
    }

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * i) as f32 * 0.7).sin() * 2.0).collect()
    }

    #[test]
    fn the_best_are_chosen_and_weighed() {
        let pool = Pool::new(2);
        let mut logits = vec![0.0, 1.0, 3.0, -1.0, 2.0, 0.5, 2.0];
        let choice = router(Scores::Softmax, true).choose(&pool, &mut logits, None);
        assert_eq!(choice.experts, [2, 4, 6], "the first among equals");
        let e = std::f32::consts::E;
        let expected = [1.7 * e / (e + 2.0), 1.7 / (e + 2.0), 1.7 / (e + 2.0)];
        assert!(choice.weights.iter().zip(expected).all(|(w, e)| (w - e).abs() < 1e-6));

        let mut logits = vec![0.0, 1.0, 3.0, -1.0, 2.0, 0.5, 2.0];
        let bias = [0.0, 0.0, -9.0, 0.0, 0.0, 9.0, 0.0];
        let choice = router(Scores::Sigmoid, false).choose(&pool, &mut logits, Some(&bias));
        assert_eq!(choice.experts, [5, 4, 6], "the bias decides who is chosen");
        assert!((choice.weights[0] - 1.7 * sigmoid(0.5)).abs() < 1e-6, "but not the weight");
    }

    #[test]
    fn experts_are_of_the_best_groups() {
        let pool = Pool::new(1);
        let groups = Some(Groups { count: 3, top_k: 2 });
        let choose = |scores, logits: [f32; 6]| {
            let router = Router { experts: 6, groups, ..router(scores, true) };
            router.choose(&pool, &mut logits.to_vec(), None).experts
        };
        // By the best of each: the first group and the last.
        let logits = [5.0, -9.0, 3.0, 3.5, 4.0, -9.0];
        assert_eq!(choose(Scores::Softmax, logits), [0, 4, 1]);
        // By the best two of each, whose sigmoids are near 1: the middle one and the first.
        assert_eq!(choose(Scores::Sigmoid, logits), [0, 3, 2]);
    }

    #[test]
    fn gradients_are_the_numeric_ones() {
        let pool = Pool::new(2);
        for scores in [Scores::Softmax, Scores::Sigmoid] {
            for normalise in [false, true] {
                check(&pool, router(scores, normalise));
            }
        }
    }

    fn check(pool: &Pool, router: Router) {
        // More tokens than a task takes.
        let tokens = TOKENS + 3;
        let (logits, d_weights) = (wave(tokens * EXPERTS), wave(tokens * 3));
        let value = |logits: &[f32]| {
            let mut scores = logits.to_vec();
            let choice = router.choose(pool, &mut scores, None);
            choice.weights.iter().zip(&d_weights).map(|(w, d)| f64::from(w * d)).sum::<f64>()
        };
        let mut scores = logits.clone();
        let choice = router.choose(pool, &mut scores, None);
        let mut d = vec![9.0; logits.len()];
        router.backward(pool, &mut d, &scores, &choice, &d_weights);
        for i in (0..logits.len()).step_by(11) {
            let h = 2e-3;
            let at = |offset: f32| {
                let mut moved = logits.clone();
                moved[i] += offset;
                value(&moved)
            };
            let numeric = (at(h) - at(-h)) / f64::from(2.0 * h);
            assert!((f64::from(d[i]) - numeric).abs() < 5e-3, "{router:?} {i}: {} {numeric}", d[i]);
        }
    }
}
