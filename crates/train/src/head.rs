//! The output layer and the losses on it, a block of rows at a time.

use kernel::loss::{self, Goal, RowLoss};
use kernel::{Buffer, Output, Pool};
use model::{Decoder, Weights};

use crate::Sample;

/// Rows whose logits are held at a time: 256 × 49,152 f32 are 48 MiB.
pub(crate) const LOGIT_ROWS: usize = 256;
/// Memory for the gradients with respect to logits that the output matrix's gradient is made of at
/// once, in values: each time the whole matrix is gone through.
pub(crate) const GRADIENT_VALUES: usize = 32 << 20;

/// A token to predict.
#[derive(Clone, Copy)]
pub(crate) struct Label {
    /// The row of the batch that predicts it.
    pub(crate) row: usize,
    pub(crate) target: u32,
    pub(crate) weight: f32,
}

/// The labels of a sample whose rows begin at row `start`, each of which predicts the token that stands
/// `ahead` places further.
pub(crate) fn labels(sample: &Sample, start: usize, ahead: usize) -> impl Iterator<Item = Label> {
    let label = move |at: usize| Label {
        row: start + at - ahead,
        target: sample.tokens[at],
        weight: sample.weights[at],
    };
    (ahead..sample.tokens.len()).map(label).filter(|label| label.weight > 0.0)
}

/// What is asked of a row of the batch.
#[derive(Clone, Copy)]
pub(crate) struct RowGoal<'a> {
    pub(crate) row: usize,
    /// The token to predict, and its weight.
    pub(crate) target: Option<(u32, f32)>,
    /// The base's hidden row, and the weight of KL(base ‖ model).
    pub(crate) base: Option<(&'a [f32], f32)>,
}

pub(crate) struct Head<'a> {
    pool: &'a Pool,
    decoder: &'a Decoder,
    /// `[tokens, hidden]`.
    hidden: &'a [f32],
}

impl<'a> Head<'a> {
    pub(crate) fn new(pool: &'a Pool, decoder: &'a Decoder, hidden: &'a [f32]) -> Self {
        Head { pool, decoder, hidden }
    }

    fn gather<'b>(&self, rows: impl ExactSizeIterator<Item = &'b [f32]>) -> Buffer<'a> {
        let size = self.decoder.config().hidden;
        let mut hidden = self.pool.buffer(rows.len() * size);
        for (out, row) in hidden.chunks_exact_mut(size).zip(rows) {
            out.copy_from_slice(row);
        }
        hidden
    }

    /// The losses of each goal, in nats, and the gradient of their weighted sum with respect to
    /// the hidden rows, `[tokens, hidden]`; sets or adds to that of the output matrix where it is
    /// trained. A row has one goal at most.
    pub(crate) fn losses(
        &self,
        goals: &[RowGoal],
        mut trained: Option<(&mut Weights, Output)>,
    ) -> (Vec<RowLoss>, Vec<f32>) {
        let Head { pool, decoder, hidden } = *self;
        let size = decoder.config().hidden;
        let mut losses = Vec::with_capacity(goals.len());
        let mut d_hidden = vec![0.0; hidden.len()];
        let together = (GRADIENT_VALUES / decoder.config().vocab).next_multiple_of(LOGIT_ROWS);
        for goals in goals.chunks(together) {
            let rows = goals.iter().map(|goal| &hidden[goal.row * size..][..size]);
            let rows = decoder.head_lanes(pool, self.gather(rows));
            let mut d_logits = decoder.d_logits(pool, goals.len());
            for (index, block) in goals.chunks(LOGIT_ROWS).enumerate() {
                let first = index * LOGIT_ROWS;
                let part = first..first + block.len();
                let mut logits = decoder.train_logits(pool, &rows.part(part.clone()));
                let base: Vec<&[f32]> =
                    block.iter().filter_map(|goal| goal.base.map(|(row, _)| row)).collect();
                let mut reference = match base.is_empty() {
                    true => pool.buffer(0),
                    false => {
                        let base = decoder.head_lanes(pool, self.gather(base.into_iter()));
                        decoder.train_logits(pool, &base)
                    }
                };
                let targets = targets(block);
                let d = (&mut d_logits, first);
                losses.extend(loss::losses(pool, d, &mut logits, &mut reference, &targets));
                let d = decoder.logits_backward(pool, &d_logits.part(part));
                for (goal, d) in block.iter().zip(d.chunks_exact(size)) {
                    d_hidden[goal.row * size..][..size].copy_from_slice(d);
                }
            }
            if let Some((gradients, mode)) = &mut trained {
                decoder.head_gradient(pool, gradients, &d_logits, &rows, *mode);
                *mode = Output::Add;
            }
        }
        (losses, d_hidden)
    }
}

/// The goals of a block; rows of the reference follow one another.
fn targets(block: &[RowGoal]) -> Vec<Goal> {
    let mut next = 0..;
    let mut goal = |goal: &RowGoal| Goal {
        target: goal.target,
        reference: goal.base.and_then(|(_, weight)| Some((next.next()?, weight))),
    };
    block.iter().map(&mut goal).collect()
}
