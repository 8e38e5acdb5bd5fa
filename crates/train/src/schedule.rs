//! What each step trains on, and at which rate: functions of the seed and the step's number, so
//! that a resumed run needs no other state.

use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use serde::{Deserialize, Serialize};

use crate::Sample;

/// How samples are packed into steps.
pub(crate) struct Packing {
    pub(crate) batch_tokens: usize,
    pub(crate) negative_share: f32,
    pub(crate) seed: u64,
}

/// The samples of every step, by index.
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Step {
    pub(crate) samples: Vec<usize>,
    pub(crate) negatives: Vec<usize>,
}

impl Plan {
    /// As many passes as the sample with the most of them has, each in an order of its own, packed
    /// into steps of at most `batch_tokens`; samples with fewer are left out of some in between. Negatives
    /// go round beside them, in as many steps as their share of the tokens needs.
    pub(crate) fn new(samples: &[Sample], negatives: &[Vec<u32>], packing: &Packing) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(packing.seed.wrapping_add(1));
        let mut steps = Vec::new();
        let mut order: Vec<usize> = (0..samples.len()).collect();
        let passes = samples.iter().map(|sample| sample.passes).max().unwrap_or(0);
        for pass in 0..passes {
            order.shuffle(&mut rng);
            let (mut step, mut tokens) = (Step::default(), 0);
            for &index in order.iter().filter(|&&i| due(samples[i].passes, pass, passes)) {
                let len = samples[index].tokens.len();
                if tokens + len > packing.batch_tokens && tokens > 0 {
                    steps.push(std::mem::take(&mut step));
                    tokens = 0;
                }
                step.samples.push(index);
                tokens += len;
            }
            steps.push(step);
        }
        let wanted = (packing.batch_tokens as f32 * packing.negative_share) as usize;
        let mut round: Vec<usize> = Vec::new();
        let (mut due, mut tokens) = (0, 0);
        for step in &mut steps {
            due += wanted;
            while tokens < due && !negatives.is_empty() {
                let index = round.pop().unwrap_or_else(|| {
                    round = (0..negatives.len()).collect();
                    round.shuffle(&mut rng);
                    round.pop().expect("there are negatives")
                });
                tokens += negatives[index].len();
                step.negatives.push(index);
            }
        }
        Plan { steps }
    }
}

/// Whether a sample that `own` of `all` passes hold is in pass `pass`; these are spread evenly.
fn due(own: usize, pass: usize, all: usize) -> bool {
    let up_to = |pass: usize| (2 * pass * own + all) / (2 * all);
    up_to(pass + 1) > up_to(pass)
}

/// Runs of lengths that add up to `most` at most, where none is longer by itself.
pub(crate) fn runs(lengths: &[usize], most: usize) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (index, length) in lengths.iter().enumerate() {
        if sum + length > most && index > start {
            runs.push(start..index);
            (start, sum) = (index, 0);
        }
        sum += length;
    }
    if start < lengths.len() {
        runs.push(start..lengths.len());
    }
    runs
}

/// How the learning rate goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Along a cosine to a tenth of the peak.
    Cosine,
    /// At the peak, then in the last fifth of the steps straight down to a hundredth (warmup, stable,
    /// decay).
    ///
    /// **Source**: Hu et al. 2024, arXiv 2404.06395, section 4.
    Wsd,
}

/// The learning rate over a run.
pub(crate) struct Curve {
    pub(crate) shape: Shape,
    pub(crate) peak: f32,
    /// Share of the steps in which the rate rises from 0.
    pub(crate) warmup: f32,
}

impl Curve {
    /// The rate of step `step` (from 0) of `steps`.
    pub(crate) fn rate(&self, step: usize, steps: usize) -> f32 {
        let warmup = (self.warmup * steps as f32).max(1.0);
        let at = step as f32 + 1.0;
        if at < warmup {
            return self.peak * at / warmup;
        }
        let done = ((at - warmup) / (steps as f32 - warmup).max(1.0)).min(1.0);
        match self.shape {
            Shape::Cosine => self.peak * (0.1 + 0.45 * (1.0 + (std::f32::consts::PI * done).cos())),
            Shape::Wsd => self.peak * (1.0 - 0.99 * (done - 0.8).max(0.0) / 0.2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sample_is_gone_through_as_often_as_it_says() {
        let samples: Vec<Sample> = (1..30)
            .map(|len| Sample {
                tokens: vec![0; len],
                weights: vec![1.0; len],
                softened: false,
                passes: 2 + len % 2,
            })
            .collect();
        let options = Packing { batch_tokens: 64, negative_share: 0.2, seed: 1 };
        let plan = Plan::new(&samples, &[vec![0; 10], vec![0; 10]], &options);
        let mut seen = vec![0; samples.len()];
        let mut shown = 0;
        for (index, step) in plan.steps.iter().enumerate() {
            assert!(step.samples.iter().map(|&i| samples[i].tokens.len()).sum::<usize>() <= 64);
            shown += 10 * step.negatives.len();
            let share = 12 * (index + 1);
            assert!((share..share + 10).contains(&shown), "a share of 0.2 is 12 tokens a step");
            step.samples.iter().for_each(|&i| seen[i] += 1);
        }
        assert!(seen.iter().zip(&samples).all(|(&n, sample)| n == sample.passes));
        assert_eq!(plan.steps, Plan::new(&samples, &[vec![0; 10], vec![0; 10]], &options).steps);
    }

    #[test]
    fn runs_hold_all_in_order_and_no_more_than_fits() {
        assert_eq!(runs(&[3, 4, 5, 20, 1, 1], 8), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(runs(&[9, 1], 8), [0..1, 1..2]);
        assert!(runs(&[], 8).is_empty());
    }

    #[test]
    fn the_rate_rises_then_falls_to_a_tenth() {
        let rates = |shape| -> Vec<f32> {
            let curve = Curve { shape, peak: 1.0, warmup: 0.1 };
            (0..100).map(|step| curve.rate(step, 100)).collect()
        };
        let stable = rates(Shape::Wsd);
        assert!(stable[9..=80].iter().all(|&rate| (rate - 1.0).abs() < 1e-6));
        assert!(stable[81..].windows(2).all(|w| w[1] < w[0]) && (stable[99] - 0.01).abs() < 1e-3);
        let rates = rates(Shape::Cosine);
        assert!((rates[0] - 0.1).abs() < 1e-6 && (rates[9] - 1.0).abs() < 1e-2);
        assert!(rates[9..].windows(2).all(|w| w[1] <= w[0]));
        assert!((rates[99] - 0.1).abs() < 1e-3);
    }
}
