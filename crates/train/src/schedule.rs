//! What each step trains on, and at which rate: functions of the seed and the step's number, so
//! that a resumed run needs no other state.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::{Options, Sample};

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
    /// Each pass in an order of its own, packed into steps of at most `batch_tokens`; negatives
    /// go round beside them, in as many steps as their share of the tokens needs.
    pub(crate) fn new(samples: &[Sample], negatives: &[Vec<u32>], options: &Options) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed.wrapping_add(1));
        let mut steps = Vec::new();
        let mut order: Vec<usize> = (0..samples.len()).collect();
        for _ in 0..options.passes {
            order.shuffle(&mut rng);
            let (mut step, mut tokens) = (Step::default(), 0);
            for &index in &order {
                let len = samples[index].tokens.len();
                if tokens + len > options.batch_tokens && tokens > 0 {
                    steps.push(std::mem::take(&mut step));
                    tokens = 0;
                }
                step.samples.push(index);
                tokens += len;
            }
            steps.push(step);
        }
        let wanted = (options.batch_tokens as f32 * options.negative_share) as usize;
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

/// The learning rate of step `step` (from 0) of `steps`.
pub(crate) fn rate(options: &Options, step: usize, steps: usize) -> f32 {
    let warmup = (options.warmup * steps as f32).max(1.0);
    let at = step as f32 + 1.0;
    if at < warmup {
        return options.learning_rate * at / warmup;
    }
    let done = (at - warmup) / (steps as f32 - warmup).max(1.0);
    options.learning_rate * (0.1 + 0.45 * (1.0 + (std::f32::consts::PI * done.min(1.0)).cos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pass_holds_each_sample_once() {
        let samples: Vec<Sample> = (1..30)
            .map(|len| Sample { tokens: vec![0; len], weights: vec![1.0; len], softened: false })
            .collect();
        let options = Options {
            passes: 2,
            batch_tokens: 64,
            sequence_tokens: 32,
            negative_share: 0.2,
            ..Options::default()
        };
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
        assert!(seen.iter().all(|&n| n == 2));
        assert_eq!(plan.steps, Plan::new(&samples, &[vec![0; 10], vec![0; 10]], &options).steps);
    }

    #[test]
    fn the_rate_rises_then_falls_to_a_tenth() {
        let options = Options { learning_rate: 1.0, warmup: 0.1, ..Options::default() };
        let rates: Vec<f32> = (0..100).map(|step| rate(&options, step, 100)).collect();
        assert!((rates[0] - 0.1).abs() < 1e-6 && (rates[9] - 1.0).abs() < 1e-2);
        assert!(rates[9..].windows(2).all(|w| w[1] <= w[0]));
        assert!((rates[99] - 0.1).abs() < 1e-3);
    }
}
