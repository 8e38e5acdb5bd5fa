use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use kernel::logits::largest;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Sampling;

/// Draws the tokens of one sequence.
pub(crate) struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// How often each token was generated.
    generated: HashMap<u32, u32>,
    /// Tokens of the prompt, where the repetition penalty needs them.
    prompt: HashSet<u32>,
}

/// A token with its weight relative to the likeliest one's, which is 1.
type Candidate = (u32, f32);

impl Sampler {
    pub(crate) fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let repetition = sampling.repetition_penalty != 1.0;
        Sampler {
            random: ChaCha8Rng::seed_from_u64(sampling.seed),
            generated: HashMap::new(),
            prompt: if repetition { prompt.iter().copied().collect() } else { HashSet::new() },
            sampling,
        }
    }

    /// The next token under `logits` `[vocab]`; none where they are not numbers.
    pub(crate) fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        let logits = self.adjusted(logits);
        let (likeliest, max) = largest(&logits)?;
        let likeliest = likeliest as u32;
        let token = if self.sampling.temperature == 0.0 {
            likeliest
        } else {
            let point: f64 = self.random.random();
            let candidates = self.candidates(&logits, max);
            pick(&candidates, point).unwrap_or(likeliest)
        };
        *self.generated.entry(token).or_default() += 1;
        Some(token)
    }

    /// The logits after penalties and biases.
    fn adjusted<'a>(&self, logits: &'a [f32]) -> Cow<'a, [f32]> {
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } =
            self.sampling;
        let as_they_are = repetition_penalty == 1.0
            && frequency_penalty == 0.0
            && presence_penalty == 0.0
            && self.sampling.logit_bias.is_empty();
        if as_they_are {
            return Cow::Borrowed(logits);
        }
        let mut logits = logits.to_vec();
        if repetition_penalty != 1.0 {
            let new = self.generated.keys().filter(|token| !self.prompt.contains(token));
            for &token in self.prompt.iter().chain(new) {
                let logit = &mut logits[token as usize];
                *logit = if *logit > 0.0 {
                    *logit / repetition_penalty
                } else {
                    *logit * repetition_penalty
                };
            }
        }
        if frequency_penalty != 0.0 || presence_penalty != 0.0 {
            for (&token, &count) in &self.generated {
                logits[token as usize] -= frequency_penalty * count as f32 + presence_penalty;
            }
        }
        for &(token, bias) in &self.sampling.logit_bias {
            logits[token as usize] += bias;
        }
        Cow::Owned(logits)
    }

    /// The tokens among which to draw, after temperature, `top_k`, `top_p` and `min_p`.
    fn candidates(&self, logits: &[f32], max: f32) -> Vec<Candidate> {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let weight = |logit: f32| ((logit - max) / temperature).exp();
        let mut candidates: Vec<Candidate> =
            (0u32..).zip(logits.iter().map(|&logit| weight(logit))).collect();
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, likelier);
            candidates.truncate(top_k);
            candidates.sort_unstable_by(likelier);
        }
        if top_p < 1.0 {
            keep_top_p(&mut candidates, top_p);
        }
        if min_p > 0.0 {
            candidates.retain(|&(_, weight)| weight >= min_p);
        }
        candidates
    }
}

fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|&(_, weight)| f64::from(weight)).sum()
}

/// Keeps the likeliest candidates until they hold `top_p` of the weight. Sorts only as many as
/// that takes: a vocabulary is long, and the likely tokens few.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f32) {
    let enough = total(candidates) * f64::from(top_p);
    let mut sorted = 64;
    loop {
        sorted = sorted.min(candidates.len());
        if sorted < candidates.len() {
            candidates.select_nth_unstable_by(sorted - 1, likelier);
        }
        candidates[..sorted].sort_unstable_by(likelier);
        let mut sum = 0.0;
        let reached = candidates[..sorted].iter().position(|&(_, weight)| {
            sum += f64::from(weight);
            sum >= enough
        });
        if let Some(last) = reached {
            candidates.truncate(last + 1);
            return;
        }
        if sorted == candidates.len() {
            return;
        }
        sorted *= 8;
    }
}

/// The candidate at `point` (0 up to 1) of the weight.
fn pick(candidates: &[Candidate], point: f64) -> Option<u32> {
    let mut rest = total(candidates) * point;
    for &(token, weight) in candidates {
        rest -= f64::from(weight);
        if rest < 0.0 {
            return Some(token);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each of the tokens is drawn in 2000 draws from a fresh sampler.
    fn shares(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for seed in 0..2000 {
            let mut sampler = Sampler::new(Sampling { seed, ..sampling.clone() }, &[]);
            counts[sampler.draw(logits).unwrap() as usize] += 1.0 / 2000.0;
        }
        counts
    }

    fn check(sampling: Sampling, logits: &[f32], expected: &[f64]) {
        let shares = shares(sampling, logits);
        for (share, expected) in shares.iter().zip(expected) {
            // Three standard deviations of a share of 2000 draws are at most 0.034.
            let tolerance = if *expected == 0.0 || *expected == 1.0 { 0.0 } else { 0.034 };
            assert!((share - expected).abs() <= tolerance + 1e-9, "{shares:?}");
        }
    }

    fn logs(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() + 7.0).collect()
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = logs(&[0.1, 0.4, 0.2, 0.3]);
        let sampling = Sampling::default();
        check(sampling.clone(), &logits, &[0.1, 0.4, 0.2, 0.3]);
        // Squared and normalised: 1, 16, 4, 9 of 30.
        let cold = Sampling { temperature: 0.5, ..sampling.clone() };
        check(cold, &logits, &[1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0]);
        check(Sampling::greedy(), &logits, &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn filters_keep_the_likeliest() {
        let logits = logs(&[0.1, 0.4, 0.2, 0.3]);
        let with = |top_k, top_p, min_p| Sampling { top_k, top_p, min_p, ..Sampling::default() };
        check(with(2, 1.0, 0.0), &logits, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        check(with(0, 0.65, 0.0), &logits, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        check(with(0, 1.0, 0.6), &logits, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        check(with(0, 1e-6, 0.0), &logits, &[0.0, 1.0, 0.0, 0.0]);
        check(with(9, 1.0, 1.0), &logits, &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn top_p_over_a_flat_long_vocabulary() {
        let mut candidates: Vec<Candidate> = (0..5000).map(|id| (id, 1.0)).collect();
        keep_top_p(&mut candidates, 0.5);
        let ids: Vec<u32> = candidates.iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, (0..2500).collect::<Vec<_>>());
    }

    #[test]
    fn penalties_and_biases_move_the_choice() {
        let mut greedy = Sampling { frequency_penalty: 0.6, ..Sampling::greedy() };
        let mut sampler = Sampler::new(greedy.clone(), &[]);
        let logits = [1.0, 0.5, 0.0];
        let drawn: Vec<u32> = (0..4).map(|_| sampler.draw(&logits).unwrap()).collect();
        assert_eq!(drawn, [0, 1, 0, 2]);

        greedy.frequency_penalty = 0.0;
        greedy.repetition_penalty = 4.0;
        assert_eq!(Sampler::new(greedy.clone(), &[0]).draw(&logits), Some(1));

        greedy.logit_bias = vec![(2, 100.0)];
        assert_eq!(Sampler::new(greedy, &[]).draw(&logits), Some(2));
    }

    #[test]
    fn logits_that_are_not_numbers_give_no_token() {
        for logits in [[f32::NAN, 1.0], [f32::INFINITY, 1.0], [f32::NEG_INFINITY; 2]] {
            assert_eq!(Sampler::new(Sampling::default(), &[]).draw(&logits), None);
        }
    }
}
