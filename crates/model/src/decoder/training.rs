//! The forward and backward passes of training: of one expert beside the frozen base, or of all
//! weights.

use std::borrow::Cow;
use std::ops::Range;

use kernel::ops::{self, HeadRows};
use kernel::{Buffer, Lanes, Left, Output, Pool, matmul_transposed};

use super::feed_forward::Chosen;
use super::layer::{Stash, Trained};
use super::mtp::MtpTape;
use super::{Decoder, ExpertWeights, Purpose, Weights};

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

/// What a forward pass keeps to go back through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// What each layer computed.
    All,
    /// What came to each layer: the backward pass computes the rest again, layer by layer, to the same
    /// bits, in a quarter to a third more time.
    Inputs,
}

/// A forward pass to go back through, as far as the lowest layer with an expert.
pub struct Tape<'a> {
    /// `[tokens, hidden]`, after the final norm: what the head reads.
    pub hidden: Vec<f32>,
    /// Before the final norm.
    last: Vec<f32>,
    layers: Vec<Stash<'a>>,
    mtp: Option<MtpTape<'a>>,
}

impl Tape<'_> {
    /// `[rows, hidden]`: what the head reads to predict the token after the next, in a decoder with a
    /// block for it. There is a row for each token of a sequence but its last two.
    pub fn mtp_hidden(&self) -> &[f32] {
        self.mtp.as_ref().map_or(&[], |tape| &tape.hidden)
    }

    /// How many tokens went to each expert of the model's own, layer by layer.
    pub fn loads(&self) -> impl Iterator<Item = Vec<usize>> {
        self.chosen().map(|chosen| chosen.routes.load().collect())
    }

    /// The sum of each such expert's gates over the tokens, layer by layer.
    pub fn gates(&self) -> impl Iterator<Item = Vec<f64>> {
        self.chosen().map(|chosen| chosen.routes.gates().collect())
    }

    fn chosen(&self) -> impl Iterator<Item = &Chosen> {
        let mtp = self.mtp.iter().map(|tape| &tape.stash);
        self.layers.iter().chain(mtp).filter_map(|stash| stash.chosen.as_ref())
    }
}

impl Decoder {
    /// The part of the forward pass that no training changes: through the layers below the lowest
    /// one with an expert.
    ///
    /// **Shapes**: the result `[tokens, hidden]`.
    pub fn train_stem(&self, pool: &Pool, batch: &Batch) -> Vec<f32> {
        self.train_below(pool, batch, self.first_trained())
    }

    /// The rows that come to layer `layer`.
    ///
    /// **Shapes**: the result `[tokens, hidden]`.
    pub fn train_below(&self, pool: &Pool, batch: &Batch, layer: usize) -> Vec<f32> {
        let pass = self.pass(pool, batch_positions(batch));
        let mut x = self.embed(&batch.tokens);
        for layer in &self.layers[..layer] {
            layer.train_forward(&pass, &mut x, &batch.sequences);
        }
        x
    }

    /// The rest of the forward pass without anything to go back through.
    ///
    /// **Shapes**: rows `[tokens, hidden]`, from [`Decoder::train_below`]; the result, after the
    /// final norm, too.
    pub fn base_hidden(
        &self,
        pool: &Pool,
        batch: &Batch,
        mut rows: Vec<f32>,
        layer: usize,
    ) -> Vec<f32> {
        let pass = self.pass(pool, batch_positions(batch));
        for layer in &self.layers[layer..] {
            layer.train_forward(&pass, &mut rows, &batch.sequences);
        }
        self.final_norm(pool, &rows)
    }

    /// The rest of the forward pass over whole sequences, with the one expert that is attached where
    /// one is trained.
    ///
    /// **Shapes**: stem `[tokens, hidden]`, from [`Decoder::train_stem`].
    pub fn train_forward<'a>(
        &self,
        pool: &'a Pool,
        batch: &Batch,
        stem: Vec<f32>,
        keep: Keep,
    ) -> Tape<'a> {
        let pass = self.pass(pool, batch_positions(batch));
        let mut x = stem;
        let layers = self.layers[self.first_trained()..].iter().map(|layer| {
            let mut stash = layer.train_forward(&pass, &mut x, &batch.sequences);
            if keep == Keep::Inputs {
                stash.inner = None;
            }
            stash
        });
        let layers = layers.collect();
        let hidden = self.final_norm(pool, &x);
        let mut mtp = self.mtp_forward(pool, batch, &hidden);
        if let (Some(tape), Keep::Inputs) = (&mut mtp, keep) {
            tape.stash.inner = None;
        }
        Tape { hidden, last: x, layers, mtp }
    }

    /// The balance loss by sequence of the model's own experts, the mean over its layers and tokens
    /// (see [`kernel::SequenceBalance::loss`]); none without such experts. The backward pass adds the
    /// gradient of `weight` times its sum over layers and tokens; a block for the token after the next is
    /// kept balanced as the layers are, but not counted.
    pub fn balance_sequences(
        &self,
        pool: &Pool,
        batch: &Batch,
        tape: &mut Tape,
        weight: f32,
    ) -> Option<f32> {
        let layers = self.layers[self.first_trained()..].iter().zip(&mut tape.layers);
        let losses =
            layers.filter_map(|(l, stash)| l.balance(pool, stash, &batch.sequences, weight));
        let losses: Vec<f32> = losses.collect();
        if let (Some(mtp), Some(tape)) = (&self.mtp, &mut tape.mtp) {
            mtp.layer.balance(pool, &mut tape.stash, &tape.batch.sequences, weight);
        }
        (!losses.is_empty()).then(|| losses.iter().sum::<f32>() / losses.len() as f32)
    }

    fn first_trained(&self) -> usize {
        if self.purpose == Purpose::WholeTraining {
            return 0;
        }
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
        let first = self.first_trained();
        let layers = gradients.layers[first..].iter_mut().enumerate();
        let trained = layers.map(|(above, gradients)| Trained::Expert {
            gradients,
            pull,
            lowest: above == 0,
        });
        self.layers_backward(pool, batch, (tape.last, tape.layers), d_hidden, trained);
    }

    /// The backward pass of a decoder that is trained whole: sets `gradients` or adds to them, given
    /// `d_hidden` with respect to [`Tape::hidden`] and `d_mtp` to [`Tape::mtp_hidden`]. Those of the
    /// output matrix are left out; they come from [`Decoder::head_gradient`], which goes before, since
    /// the matrix may be the embedding.
    ///
    /// **Shapes**: d_hidden `[tokens, hidden]`; d_mtp `[rows, hidden]`.
    pub fn train_backward_whole(
        &self,
        pool: &Pool,
        batch: &Batch,
        mut tape: Tape,
        [d_hidden, d_mtp]: [&[f32]; 2],
        gradients: &mut Weights,
        mode: Output,
    ) {
        if mode == Output::Replace && !self.config.tied_embeddings {
            ops::clear(pool, &mut gradients.embedding);
        }
        let mut d_hidden = Cow::Borrowed(d_hidden);
        match (&mut gradients.mtp, tape.mtp.take()) {
            (Some(block), Some(tape)) => {
                let of = (&mut **block, gradients.embedding.as_mut_slice());
                self.mtp_backward(pool, tape, d_mtp, d_hidden.to_mut(), of, mode);
            }
            // No sequence was long enough.
            (Some(gradients), None) if mode == Output::Replace => {
                gradients.parts_mut().for_each(|values| values.fill(0.0));
            }
            _ => {}
        }
        let d_hidden = &*d_hidden;
        let row = HeadRows { stride: self.config.hidden, first: 0, heads: 1 };
        let eps = self.config.norm_eps;
        let logits = self.config.scales.logits;
        let scaled = (logits != 1.0).then(|| d_hidden.iter().map(|d| d / logits).collect());
        let scaled: Option<Vec<f32>> = scaled;
        let rows = (tape.last.as_slice(), scaled.as_deref().unwrap_or(d_hidden));
        ops::rms_norm_weight_gradient(pool, &mut gradients.norm, rows, row, eps, mode);
        let layers = gradients.layers.iter_mut();
        let trained = layers.map(|gradients| Trained::Whole { gradients, mode });
        let d = self.layers_backward(pool, batch, (tape.last, tape.layers), d_hidden, trained);
        let (hidden, scale) = (self.config.hidden, self.config.scales.embedding);
        for (&token, d) in batch.tokens.iter().zip(d.chunks_exact(hidden)) {
            let row = &mut gradients.embedding[token as usize * hidden..][..hidden];
            row.iter_mut().zip(d).for_each(|(sum, d)| *sum += d * scale);
        }
    }

    /// Back through the final norm and the layers that are trained; gives the gradient with respect
    /// to the stem, where all weights are.
    fn layers_backward<'a>(
        &self,
        pool: &Pool,
        batch: &Batch,
        (last, stashes): (Vec<f32>, Vec<Stash>),
        d_hidden: &[f32],
        trained: impl DoubleEndedIterator<Item = Trained<'a>> + ExactSizeIterator,
    ) -> Vec<f32> {
        let pass = self.pass(pool, batch_positions(batch));
        let mut d = vec![0.0; d_hidden.len()];
        let eps = self.config.norm_eps;
        ops::rms_norm_backward(pool, &mut d, &last, &self.norm, eps, d_hidden);
        let layers = &self.layers[self.first_trained()..];
        for ((layer, trained), stash) in layers.iter().zip(trained).zip(stashes).rev() {
            layer.backward(&pass, &mut d, &batch.sequences, stash, trained);
        }
        d
    }

    /// Hidden rows as the output matrix multiplies them.
    ///
    /// **Shapes**: rows `[rows, hidden]`.
    pub fn head_lanes<'a>(&self, pool: &'a Pool, rows: Buffer<'a>) -> Lanes<'a> {
        self.head.lanes(pool, rows, self.config.hidden)
    }

    /// Memory for gradients with respect to the logits of so many rows.
    pub fn d_logits<'a>(&self, pool: &'a Pool, rows: usize) -> Lanes<'a> {
        Lanes::unset(pool, self.head.precision(), rows, self.config.vocab)
    }

    /// The logits of hidden rows, to train on.
    ///
    /// **Shapes**: hidden `[rows, hidden]`; the result `[rows, vocab]`.
    pub fn train_logits<'a>(&self, pool: &'a Pool, hidden: &Lanes) -> Buffer<'a> {
        self.head.apply_lanes(pool, hidden)
    }

    /// The gradient with respect to hidden rows, given that with respect to their logits.
    ///
    /// **Shapes**: d_logits `[rows, vocab]`; the result `[rows, hidden]`.
    pub fn logits_backward<'a>(&self, pool: &'a Pool, d_logits: &Lanes) -> Buffer<'a> {
        let mut d = pool.buffer(d_logits.rows() * self.config.hidden);
        self.head.backward(pool, &mut d, Left::Lanes(d_logits), Output::Replace);
        d
    }

    /// The gradient of the output matrix, which may be the embedding.
    ///
    /// **Shapes**: d_logits `[rows, vocab]`; hidden `[rows, hidden]`.
    pub fn head_gradient(
        &self,
        pool: &Pool,
        gradients: &mut Weights,
        d_logits: &Lanes,
        hidden: &Lanes,
        mode: Output,
    ) {
        let out = match self.config.tied_embeddings {
            true => &mut gradients.embedding,
            false => &mut gradients.head,
        };
        matmul_transposed(pool, out, d_logits, hidden, mode);
    }
}

/// Positions count from 0 in each sequence.
pub(super) fn batch_positions(batch: &Batch) -> Vec<u32> {
    batch.sequences.iter().flat_map(|s| 0..s.len() as u32).collect()
}
