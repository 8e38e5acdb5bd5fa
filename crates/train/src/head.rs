//! The output layer and the losses on it, a block of rows at a time.

use kernel::{Buffer, Output, Pool, loss};
use model::{Decoder, Weights};

use crate::Sample;

/// Rows whose logits are held at a time: 256 × 49,152 f32 are 48 MiB.
const LOGIT_ROWS: usize = 256;

/// A token to predict.
#[derive(Clone, Copy)]
pub(crate) struct Label {
    /// The row of the batch that predicts it.
    row: usize,
    target: u32,
    pub(crate) weight: f32,
}

/// The labels of a sample whose tokens begin at row `start`.
pub(crate) fn labels(sample: &Sample, start: usize) -> impl Iterator<Item = Label> {
    let label = move |at: usize| Label {
        row: start + at - 1,
        target: sample.tokens[at],
        weight: sample.weights[at],
    };
    (1..sample.tokens.len()).map(label).filter(|label| label.weight > 0.0)
}

pub(crate) struct Head<'a> {
    pool: &'a Pool,
    decoder: &'a Decoder,
    /// `[tokens, hidden]`.
    hidden: &'a [f32],
    pub(crate) d_hidden: Vec<f32>,
}

impl<'a> Head<'a> {
    pub(crate) fn new(pool: &'a Pool, decoder: &'a Decoder, hidden: &'a [f32]) -> Self {
        Head { pool, decoder, hidden, d_hidden: vec![0.0; hidden.len()] }
    }

    fn gather(&self, rows: impl ExactSizeIterator<Item = usize>) -> Buffer<'a> {
        let size = self.decoder.config().hidden;
        let mut hidden = self.pool.buffer(rows.len() * size);
        for (out, row) in hidden.chunks_exact_mut(size).zip(rows) {
            out.copy_from_slice(&self.hidden[row * size..][..size]);
        }
        hidden
    }

    /// Cross-entropy summed by weight and divided by `total`, in nats; sets its gradient, and that of
    /// the output matrix where it is trained.
    pub(crate) fn cross_entropy(
        &mut self,
        labels: &[Label],
        total: f32,
        mut trained: Option<(&mut Weights, Output)>,
    ) -> f32 {
        let (size, vocab) = (self.decoder.config().hidden, self.decoder.config().vocab);
        let mut sum = 0.0;
        for block in labels.chunks(LOGIT_ROWS) {
            let hidden = self.gather(block.iter().map(|label| label.row));
            let hidden = self.decoder.head_lanes(self.pool, hidden, size);
            let mut logits = self.decoder.train_logits(self.pool, &hidden);
            let targets: Vec<u32> = block.iter().map(|label| label.target).collect();
            let weights: Vec<f32> = block.iter().map(|label| label.weight / total).collect();
            let mut losses = vec![0.0; block.len()];
            loss::cross_entropy(self.pool, &mut logits, &targets, Some(&weights), &mut losses);
            sum += losses.iter().zip(&weights).map(|(l, w)| l * w).sum::<f32>();
            let d_logits = self.decoder.head_lanes(self.pool, logits, vocab);
            let d = self.decoder.logits_backward(self.pool, &d_logits);
            for (label, d) in block.iter().zip(d.chunks_exact(size)) {
                self.d_hidden[label.row * size..][..size].copy_from_slice(d);
            }
            if let Some((gradients, mode)) = &mut trained {
                self.decoder.head_gradient(self.pool, gradients, &d_logits, &hidden, *mode);
                *mode = Output::Add;
            }
        }
        sum
    }

    /// The sum of KL(base ‖ model) over `rows`, in nats; adds `weight` times its gradient.
    ///
    /// **Shapes**: base `[rows, hidden]`, the base's hidden rows there.
    pub(crate) fn divergence(&mut self, rows: &[usize], base: &[f32], weight: f32) -> f32 {
        let (size, vocab) = (self.decoder.config().hidden, self.decoder.config().vocab);
        let mut sum = 0.0;
        for (block, base) in rows.chunks(LOGIT_ROWS).zip(base.chunks(LOGIT_ROWS * size)) {
            let logits = |rows| {
                let rows = self.decoder.head_lanes(self.pool, rows, size);
                self.decoder.train_logits(self.pool, &rows)
            };
            let mut base_rows = self.pool.buffer(base.len());
            base_rows.copy_from_slice(base);
            let mut reference = logits(base_rows);
            let mut logits = logits(self.gather(block.iter().copied()));
            let weights = vec![weight; block.len()];
            let mut losses = vec![0.0; block.len()];
            loss::kl_divergence(self.pool, &mut reference, &mut logits, &weights, &mut losses);
            sum += losses.iter().sum::<f32>();
            let d_logits = self.decoder.head_lanes(self.pool, logits, vocab);
            let d = self.decoder.logits_backward(self.pool, &d_logits);
            for (row, d) in block.iter().zip(d.chunks_exact(size)) {
                let sum = &mut self.d_hidden[row * size..][..size];
                sum.iter_mut().zip(d).for_each(|(sum, d)| *sum += d);
            }
        }
        sum
    }
}
