//! One step of training.

use std::ops::Range;

use kernel::{Output, Pool, Precision};
use model::{Batch, Config, Decoder, Keep, Purpose, Weights};

use super::balance::{Balance, Loads};
use super::{Learned, Training};
use crate::Sample;
use crate::checkpoint::State;
use crate::head::{Head, Label, RowGoal, labels};
use crate::schedule::runs;

/// A model in training.
pub struct Trainer {
    pub(super) config: Config,
    pub(super) training: Training,
    pub(super) learned: Learned,
    decoder: Decoder,
    gradients: Weights,
}

/// What a step gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Nats per token.
    pub loss: f32,
    /// Of what is trained.
    pub gradient_norm: f32,
    /// None in a dense model.
    pub balance: Option<Balance>,
}

impl Trainer {
    /// Begins to train all of these weights.
    pub fn new(
        pool: &Pool,
        config: &Config,
        precision: Precision,
        training: &Training,
        weights: Weights,
    ) -> Self {
        let zeros = || Weights::zeros(config);
        let state = State { step: 0, weights, mean: zeros(), square: zeros() };
        Trainer::of(pool, config, precision, training, Learned::All(state))
    }

    /// Goes on from there.
    pub(crate) fn of(
        pool: &Pool,
        config: &Config,
        precision: Precision,
        training: &Training,
        learned: Learned,
    ) -> Self {
        let purpose = Purpose::WholeTraining;
        let gradients = Weights::zeros(config);
        // All of them are gone through in each step.
        learned.ask_for_huge_pages();
        gradients.ask_for_huge_pages();
        Trainer {
            decoder: Decoder::of_weights(pool, config, precision, purpose, learned.weights()),
            gradients,
            config: config.clone(),
            training: training.clone(),
            learned,
        }
    }

    /// How many values are trained.
    pub fn parameters(&self) -> usize {
        self.learned.parameters()
    }

    pub(crate) fn learned(&self) -> &Learned {
        &self.learned
    }

    /// Forward, backward and update on some samples. If a figure is not finite the weights stay.
    pub fn step(&mut self, pool: &Pool, samples: &[&Sample], learning_rate: f32) -> Figures {
        let starts = |range: &Range<usize>| labels_of(&samples[range.clone()]);
        let lengths: Vec<usize> = samples.iter().map(|sample| sample.tokens.len()).collect();
        let parts = runs(&lengths, self.training.micro_batch_tokens);
        let total: f32 = parts.iter().flat_map(starts).map(|label| label.weight).sum();
        let tokens = lengths.iter().sum::<usize>() as f32;
        let (mut loss, mut sequence) = (0.0, 0.0);
        let mut loads = Loads::default();
        let mut mode = Output::Replace;
        for part in parts {
            let labels = labels_of(&samples[part.clone()]);
            let batch = Batch::of(samples[part].iter().map(|sample| sample.tokens.as_slice()));
            let stem = self.decoder.train_stem(pool, &batch);
            let keep = if self.training.recompute { Keep::Inputs } else { Keep::All };
            let mut tape = self.decoder.train_forward(pool, &batch, stem, keep);
            loads.add(tape.loads());
            let weight = self.training.sequence_balance / tokens;
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
        let mut norm = f32::NAN;
        if loss.is_finite() {
            let (config, training) = (&self.config, &self.training);
            norm = self.learned.update(pool, config, training, &self.gradients, learning_rate);
        }
        if norm.is_finite() {
            if let Learned::All(state) = &mut self.learned {
                loads.level(&mut state.weights, self.training.balance_rate);
            }
            self.decoder.fill(pool, self.learned.weights());
        }
        Figures { loss, gradient_norm: norm, balance: loads.balance(sequence) }
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
