//! The forward and backward passes that train one expert beside the frozen base.

use std::ops::Range;

use kernel::{Pool, ops};

use super::layer::Stash;
use super::{Decoder, ExpertWeights};

/// Whole sequences, one after the other.
pub struct Batch {
    pub tokens: Vec<u32>,
    /// Where each sequence stands in `tokens`; each sees itself only.
    pub sequences: Vec<Range<usize>>,
}

impl Batch {
    /// The sequences one after the other.
    pub fn of<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Batch { tokens: Vec::new(), sequences: Vec::new() };
        for tokens in sequences {
            let start = batch.tokens.len();
            batch.tokens.extend_from_slice(tokens);
            batch.sequences.push(start..batch.tokens.len());
        }
        batch
    }
}

/// A forward pass to go back through, as far as the lowest layer with an expert.
pub struct Tape {
    /// `[tokens, hidden]`, after the final norm: what the head reads.
    pub hidden: Vec<f32>,
    /// Before the final norm.
    last: Vec<f32>,
    layers: Vec<Stash>,
}

impl Decoder {
    /// The part of the forward pass that no training changes: through the layers below the lowest
    /// one with an expert.
    ///
    /// **Shapes**: the result `[tokens, hidden]`.
    pub fn train_stem(&self, pool: &Pool, batch: &Batch) -> Vec<f32> {
        let pass = self.pass(pool, batch_positions(batch));
        let mut x = self.embed(&batch.tokens);
        for layer in &self.layers[..self.first_trained()] {
            layer.train_forward(&pass, &mut x, &batch.sequences);
        }
        x
    }

    /// The rest of the forward pass over whole sequences, with the one expert that is attached.
    ///
    /// **Shapes**: stem `[tokens, hidden]`, from [`Decoder::train_stem`].
    pub fn train_forward(&self, pool: &Pool, batch: &Batch, stem: Vec<f32>) -> Tape {
        let pass = self.pass(pool, batch_positions(batch));
        let mut x = stem;
        let layers = self.layers[self.first_trained()..]
            .iter()
            .map(|layer| layer.train_forward(&pass, &mut x, &batch.sequences))
            .collect();
        Tape { hidden: self.final_norm(pool, &x), last: x, layers }
    }

    fn first_trained(&self) -> usize {
        self.layers.iter().position(|l| l.mixture.is_some()).unwrap_or(self.layers.len())
    }

    /// The backward pass: adds the expert's gradients to `gradients`, given `d_hidden` with respect
    /// to [`Tape::hidden`].
    ///
    /// `pull` moves each token's gates in all layers besides: towards null where positive, towards
    /// the expert where negative.
    ///
    /// **Shapes**: d_hidden `[tokens, hidden]`; pull `[tokens]`.
    pub fn train_backward(
        &self,
        pool: &Pool,
        batch: &Batch,
        tape: Tape,
        d_hidden: &[f32],
        pull: &[f32],
        gradients: &mut ExpertWeights,
    ) {
        let pass = self.pass(pool, batch_positions(batch));
        let mut d = vec![0.0; d_hidden.len()];
        let eps = self.config.norm_eps;
        ops::rms_norm_backward(pool, &mut d, &tape.last, &self.norm, eps, d_hidden);
        let first = self.first_trained();
        let layers = self.layers[first..].iter().zip(&mut gradients.layers[first..]);
        for ((layer, gradients), stash) in layers.zip(tape.layers).rev() {
            layer.backward(&pass, &mut d, &batch.sequences, stash, pull, gradients);
        }
    }

    /// The gradient with respect to hidden rows, given that with respect to their logits.
    ///
    /// **Shapes**: d_logits `[rows, vocab]`; the result `[rows, hidden]`.
    pub fn logits_backward(&self, pool: &Pool, d_logits: &[f32]) -> Vec<f32> {
        let rows = d_logits.len() / self.config.vocab;
        let mut d = vec![0.0; rows * self.config.hidden];
        self.head.backward(pool, &mut d, d_logits, kernel::Output::Replace);
        d
    }
}

/// Positions count from 0 in each sequence.
fn batch_positions(batch: &Batch) -> Vec<u32> {
    batch.sequences.iter().flat_map(|s| 0..s.len() as u32).collect()
}
