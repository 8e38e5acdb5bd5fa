//! One step on all weights.

use std::ops::Range;

use kernel::{Output, Pool, Precision};
use model::{Batch, Config, Decoder, Purpose, Weights};

use super::Options;
use super::balance::{Balance, Loads};
use super::initial::initial;
use super::update;
use crate::Sample;
use crate::checkpoint::State;
use crate::head::{Head, Label, RowGoal, labels};
use crate::schedule::runs;

/// A model in training.
pub struct Trainer {
    config: Config,
    options: Options,
    pub(super) state: State<Weights>,
    decoder: Decoder,
    gradients: Weights,
}

/// What a step gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Nats per token.
    pub loss: f32,
    pub gradient_norm: f32,
    /// None in a dense model.
    pub balance: Option<Balance>,
}

impl Trainer {
    /// Begins with random weights.
    pub fn new(pool: &Pool, config: &Config, precision: Precision, options: &Options) -> Self {
        let zeros = || Weights::zeros(config);
        let weights = initial(config, options.seed);
        let state = State { step: 0, weights, mean: zeros(), square: zeros() };
        Trainer::of(pool, config, precision, options, state)
    }

    /// Goes on from `state`.
    pub(super) fn of(
        pool: &Pool,
        config: &Config,
        precision: Precision,
        options: &Options,
        state: State<Weights>,
    ) -> Self {
        let purpose = Purpose::WholeTraining;
        let gradients = Weights::zeros(config);
        // All of them are gone through in each step.
        for weights in [&state.weights, &state.mean, &state.square, &gradients] {
            weights.ask_for_huge_pages();
        }
        Trainer {
            decoder: Decoder::of_weights(pool, config, precision, purpose, &state.weights),
            gradients,
            config: config.clone(),
            options: options.clone(),
            state,
        }
    }

    /// Replaces the weights, of a model of the same configuration.
    pub fn set_weights(&mut self, pool: &Pool, weights: Weights) {
        weights.ask_for_huge_pages();
        self.decoder.fill(pool, &weights);
        self.state.weights = weights;
    }

    pub fn parameters(&self) -> usize {
        self.state.weights.parameters()
    }

    /// Forward, backward and update on some samples. If a figure is not finite the weights stay.
    pub fn step(&mut self, pool: &Pool, samples: &[&Sample], learning_rate: f32) -> Figures {
        let starts = |range: &Range<usize>| labels_of(&samples[range.clone()]);
        let lengths: Vec<usize> = samples.iter().map(|sample| sample.tokens.len()).collect();
        let parts = runs(&lengths, self.options.micro_batch_tokens);
        let total: f32 = parts.iter().flat_map(starts).map(|label| label.weight).sum();
        let tokens = lengths.iter().sum::<usize>() as f32;
        let (mut loss, mut sequence) = (0.0, 0.0);
        let mut loads = Loads::default();
        let mut mode = Output::Replace;
        for part in parts {
            let labels = labels_of(&samples[part.clone()]);
            let batch = Batch::of(samples[part].iter().map(|sample| sample.tokens.as_slice()));
            let stem = self.decoder.train_stem(pool, &batch);
            let mut tape = self.decoder.train_forward(pool, &batch, stem);
            loads.add(tape.loads());
            let weight = self.options.sequence_balance / tokens;
            let uneven = self.decoder.balance_sequences(pool, &batch, &mut tape, weight);
            sequence += uneven.unwrap_or(0.0) * batch.tokens.len() as f32 / tokens;
            let goal = |label: &Label| RowGoal {
                row: label.row,
                target: Some((label.target, label.weight / total)),
                base: None,
            };
            let goals: Vec<RowGoal> = labels.iter().map(goal).collect();
            let head = Head::new(pool, &self.decoder, &tape.hidden);
            let (losses, d_hidden) = head.losses(&goals, Some((&mut self.gradients, mode)));
            let each = losses.iter().zip(&labels);
            loss +=
                each.map(|(loss, label)| loss.cross_entropy * label.weight / total).sum::<f32>();
            let gradients = &mut self.gradients;
            self.decoder.train_backward_whole(pool, &batch, tape, &d_hidden, gradients, mode);
            mode = Output::Add;
        }
        let norm = update::norm(pool, &self.config, &self.gradients);
        let figures = Figures { loss, gradient_norm: norm, balance: loads.balance(sequence) };
        if loss.is_finite() && norm.is_finite() {
            let gradients = &self.gradients;
            let (config, options) = (&self.config, &self.options);
            update::update(pool, config, options, &mut self.state, gradients, norm, learning_rate);
            loads.level(&mut self.state.weights, options.balance_rate);
            self.decoder.fill(pool, &self.state.weights);
            self.state.step += 1;
        }
        figures
    }
}

/// The labels of samples that stand one after the other.
fn labels_of(samples: &[&Sample]) -> Vec<Label> {
    let mut start = 0;
    let mut all = Vec::new();
    for sample in samples {
        all.extend(labels(sample, start));
        start += sample.tokens.len();
    }
    all
}
