//! One step of training.

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
    /// Of the token after the next, nats per token, where the model has a block for it.
    pub mtp_loss: Option<f32>,
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
        let state = State::new(weights, &config.tensors(), training);
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
        let lengths: Vec<usize> = samples.iter().map(|sample| sample.tokens.len()).collect();
        let parts = runs(&lengths, self.training.micro_batch_tokens);
        let total = |of: Predicted| -> f32 {
            let labels = parts.iter().flat_map(|part| labels_of(&samples[part.clone()], of));
            labels.map(|label| label.weight).sum()
        };
        let (total, mtp_total) = (total(Predicted::Next), total(Predicted::Further));
        let tokens = lengths.iter().sum::<usize>() as f32;
        let (mut loss, mut mtp_loss, mut sequence) = (0.0, 0.0, 0.0);
        let mut loads = Loads::default();
        let mut mode = Output::Replace;
        for part in parts {
            let samples = &samples[part];
            let batch = Batch::of(samples.iter().map(|sample| sample.tokens.as_slice()));
            let stem = self.decoder.train_stem(pool, &batch);
            let keep = if self.training.recompute { Keep::Inputs } else { Keep::All };
            let mut tape = self.decoder.train_forward(pool, &batch, stem, keep);
            loads.add(tape.loads());
            let weight = self.training.sequence_balance / tokens;
            let uneven = self.decoder.balance_sequences(pool, &batch, &mut tape, weight);
            sequence += uneven.unwrap_or(0.0) * batch.tokens.len() as f32 / tokens;
            let labels = labels_of(samples, Predicted::Next);
            let (part, d_hidden) = self.predict(pool, (&tape.hidden, &labels), [total, 1.0], mode);
            loss += part;
            let mut d_mtp = Vec::new();
            if !tape.mtp_hidden().is_empty() {
                let labels = labels_of(samples, Predicted::Further);
                let scale = [mtp_total, self.training.mtp];
                let rows = (tape.mtp_hidden(), labels.as_slice());
                let (part, d) = self.predict(pool, rows, scale, Output::Add);
                (mtp_loss, d_mtp) = (mtp_loss + part, d);
            }
            let (d, gradients) = ([d_hidden.as_slice(), &d_mtp], &mut self.gradients);
            self.decoder.train_backward_whole(pool, &batch, tape, d, gradients, mode);
            mode = Output::Add;
        }
        let mut norm = f32::NAN;
        if loss.is_finite() && mtp_loss.is_finite() {
            let (config, training) = (&self.config, &self.training);
            norm = self.learned.update(pool, config, training, &self.gradients, learning_rate);
        }
        if norm.is_finite() {
            if let Learned::All(state) = &mut self.learned {
                loads.level(&mut state.weights, self.training.balance_rate);
            }
            self.decoder.fill(pool, self.learned.weights());
        }
        Figures {
            loss,
            mtp_loss: self.config.mtp.then_some(mtp_loss),
            gradient_norm: norm,
            balance: loads.balance(sequence),
        }
    }

    /// The loss of labels, the weights of all of the step's being `total`, and the gradient of
    /// `weight` times it with respect to the rows that predict them; that of the output matrix is
    /// set, or added.
    fn predict(
        &mut self,
        pool: &Pool,
        (hidden, labels): (&[f32], &[Label]),
        [total, weight]: [f32; 2],
        mode: Output,
    ) -> (f32, Vec<f32>) {
        let goal = |label: &Label| RowGoal {
            row: label.row,
            target: Some((label.target, label.weight * weight / total)),
            base: None,
        };
        let goals: Vec<RowGoal> = labels.iter().map(goal).collect();
        let head = Head::new(pool, &self.decoder, hidden);
        let (losses, d_hidden) = head.losses(&goals, Some((&mut self.gradients, mode)));
        let each = losses.iter().zip(labels);
        let loss = each.map(|(loss, label)| loss.cross_entropy * label.weight / total).sum();
        (loss, d_hidden)
    }
}

/// Which token a row predicts.
#[derive(Clone, Copy)]
enum Predicted {
    Next,
    /// The one after it: the last two tokens of a sample have no row for that.
    Further,
}

/// The labels of samples whose rows stand one after the other.
fn labels_of(samples: &[&Sample], predicted: Predicted) -> Vec<Label> {
    let (ahead, without) = match predicted {
        Predicted::Next => (1, 0),
        Predicted::Further => (2, 2),
    };
    let mut start = 0;
    let mut all = Vec::new();
    for sample in samples {
        all.extend(labels(sample, start, ahead));
        start += sample.tokens.len().saturating_sub(without);
    }
    all
}
