//! The block that predicts the token after the next: from a token's hidden row and the embedding of
//! the next one, through one layer more, to the model's own output matrix.
//!
//! **Source**: DeepSeek-AI 2024, arXiv 2412.19437, section 2.2, with one further token. As vLLM,
//! SGLang and llama.cpp read the weights of `glm4_moe` and `deepseek_v3`, the hidden row is the one
//! behind the final norm, and the embedding stands first.

use std::ops::Range;

use kernel::ops::{self, HeadRows};
use kernel::{Buffer, Lanes, Left, Output, Pool, Precision, matmul_transposed};

use super::attention::Norm;
use super::layer::{Layer, Pass, Stash, Trained};
use super::linear::{Linear, Purpose};
use super::training::batch_positions;
use super::{Batch, Decoder, ExpertSet, Input, MtpWeights};
use crate::Config;

pub(super) struct Mtp {
    /// Of the embeddings, and of the hidden rows.
    pub(super) norms: [Norm; 2],
    /// `[hidden, 2·hidden]`
    pub(super) project: Linear,
    pub(super) layer: Layer,
    /// In place of the final norm.
    pub(super) norm: Vec<f32>,
}

/// What the backward pass needs.
///
/// **Shapes**: hidden, last `[rows, hidden]`; pairs `[rows, 2·hidden]`.
pub(super) struct MtpTape<'a> {
    /// After the block's own norm: what the head reads.
    pub(super) hidden: Vec<f32>,
    /// Each sequence without its first token and its last, of which nothing is predicted.
    pub(super) batch: Batch,
    /// The rows of the whole batch whose hidden rows were read.
    rows: Vec<usize>,
    pairs: Buffer<'a>,
    /// The normed pairs.
    inputs: Lanes<'a>,
    last: Vec<f32>,
    pub(super) stash: Stash<'a>,
}

impl Mtp {
    pub(super) fn new(config: &Config, project: Linear, layer: Layer) -> Self {
        let hidden = config.hidden;
        let norm = |first| Norm {
            rows: HeadRows { stride: 2 * hidden, first, heads: 1 },
            weight: vec![0.0; hidden],
        };
        let norms = [norm(0), norm(hidden)];
        Mtp { norms, project, layer, norm: vec![0.0; hidden] }
    }

    /// Room for the weights.
    pub(super) fn unset(config: &Config, precision: Precision, purpose: Purpose) -> Self {
        let project = Linear::unset(precision, purpose, config.hidden, 2 * config.hidden);
        Mtp::new(config, project, Layer::unset(config, config.layers, precision, purpose))
    }

    pub(super) fn fill(&mut self, pool: &Pool, weights: &MtpWeights) {
        self.norms[0].weight.copy_from_slice(&weights.embedding_norm);
        self.norms[1].weight.copy_from_slice(&weights.hidden_norm);
        self.project.fill(pool, &weights.project);
        self.layer.fill(pool, &weights.layer);
        self.norm.copy_from_slice(&weights.norm);
    }

    pub(super) fn bytes(&self) -> usize {
        self.project.bytes() + self.layer.bytes()
    }

    /// Embeddings and hidden rows side by side.
    fn pairs<'a>(pool: &'a Pool, embeddings: &[f32], hidden: &[f32], width: usize) -> Buffer<'a> {
        let mut pairs = pool.buffer(2 * hidden.len());
        let parts = embeddings.chunks_exact(width).zip(hidden.chunks_exact(width));
        for (pair, (embedding, hidden)) in pairs.chunks_exact_mut(2 * width).zip(parts) {
            pair[..width].copy_from_slice(embedding);
            pair[width..].copy_from_slice(hidden);
        }
        pairs
    }

    fn normed<'a>(&self, pass: &Pass<'a, '_>, mut pairs: Buffer<'a>) -> Buffer<'a> {
        for Norm { rows, weight } in &self.norms {
            ops::rms_norm_heads(pass.pool, &mut pairs, *rows, weight, pass.eps);
        }
        pairs
    }

    /// Sets the gradients, or adds to them, given `d` with respect to [`MtpTape::hidden`]; gives that
    /// with respect to the pairs.
    fn backward<'a>(
        &self,
        pass: &Pass<'a, '_>,
        tape: MtpTape<'a>,
        d: &[f32],
        gradients: &mut MtpWeights,
        mode: Output,
    ) -> Buffer<'a> {
        let (pool, eps) = (pass.pool, pass.eps);
        let MtpTape { batch, pairs, inputs, last, stash, .. } = tape;
        let row = HeadRows { stride: self.norm.len(), first: 0, heads: 1 };
        ops::rms_norm_weight_gradient(pool, &mut gradients.norm, (&last, d), row, eps, mode);
        let mut d_x = pool.zeros(d.len());
        ops::rms_norm_backward(pool, &mut d_x, &last, &self.norm, eps, d);
        let trained = Trained::Whole { gradients: &mut gradients.layer, mode };
        self.layer.backward(pass, &mut d_x, &batch.sequences, stash, trained);
        let d_x = self.project.lanes(pool, d_x, self.project.outputs());
        matmul_transposed(pool, &mut gradients.project, &d_x, &inputs, mode);
        let mut d_pairs = pool.buffer(pairs.len());
        self.project.backward(pool, &mut d_pairs, Left::Lanes(&d_x), Output::Replace);
        let weights = [&mut gradients.embedding_norm, &mut gradients.hidden_norm];
        for (Norm { rows, weight }, gradient) in self.norms.iter().zip(weights) {
            ops::rms_norm_weight_gradient(pool, gradient, (&pairs, &d_pairs), *rows, eps, mode);
            ops::rms_norm_heads_backward(pool, &mut d_pairs, &pairs, *rows, weight, eps);
        }
        d_pairs
    }
}

impl Decoder {
    /// Runs the block that predicts the token after the next over tokens of several sequences, each beside
    /// the hidden row of the token before it, and extends their caches, which are the block's own; gives
    /// the rows whose [logits](Decoder::logits) predict what follows the tokens. A row may stand in
    /// place of the hidden row behind it, to predict further still. Department experts have no part in
    /// it.
    ///
    /// **Shapes**: hidden, the result `[tokens, hidden]`.
    ///
    /// # Panics
    /// If the decoder was loaded without such a block, and as [`Decoder::forward`].
    pub fn further(&self, pool: &Pool, inputs: &mut [Input], hidden: &[f32]) -> Vec<f32> {
        let mtp = self.mtp.as_ref().expect("the decoder has no block for a further token");
        let (tokens, positions) = self.begin(inputs);
        let pass = self.pass(pool, positions);
        let pairs = Mtp::pairs(pool, &self.embed(&tokens), hidden, self.config.hidden);
        let mut x = mtp.project.apply(pool, &mtp.normed(&pass, pairs)).to_vec();
        mtp.layer.forward(&pass, &mut x, inputs, 0, &vec![ExpertSet::NONE; tokens.len()], &mut []);
        for input in inputs.iter_mut() {
            input.cache.len += input.tokens.len();
        }
        let mut rows = vec![0.0; x.len()];
        ops::rms_norm(pool, &mut rows, &x, &mtp.norm, pass.eps);
        rows
    }

    /// Through the block, where there is one and a sequence is long enough; `hidden` is that of the
    /// whole batch.
    pub(super) fn mtp_forward<'a>(
        &self,
        pool: &'a Pool,
        batch: &Batch,
        hidden: &[f32],
    ) -> Option<MtpTape<'a>> {
        let mtp = self.mtp.as_ref()?;
        let inner = |sequence: &Range<usize>| sequence.start + 1..sequence.end.saturating_sub(1);
        let inner: Vec<Range<usize>> =
            batch.sequences.iter().map(inner).filter(|inner| !inner.is_empty()).collect();
        let rows: Vec<usize> = inner.iter().flat_map(|i| i.start - 1..i.end - 1).collect();
        if rows.is_empty() {
            return None;
        }
        let batch = Batch::of(inner.into_iter().map(|inner| &batch.tokens[inner]));
        let pass = self.pass(pool, batch_positions(&batch));
        let width = self.config.hidden;
        let read: Vec<f32> =
            rows.iter().flat_map(|row| &hidden[row * width..][..width]).copied().collect();
        let pairs = Mtp::pairs(pool, &self.embed(&batch.tokens), &read, width);
        let normed = mtp.normed(&pass, super::layer::copy(pool, &pairs));
        let inputs = mtp.project.lanes(pool, normed, 2 * width);
        let mut x = mtp.project.apply_lanes(pool, &inputs).to_vec();
        let stash = mtp.layer.train_forward(&pass, &mut x, &batch.sequences);
        let mut hidden = vec![0.0; x.len()];
        ops::rms_norm(pool, &mut hidden, &x, &mtp.norm, pass.eps);
        Some(MtpTape { hidden, batch, rows, pairs, inputs, last: x, stash })
    }

    /// Back through the block: adds to `d_hidden`, the gradient with respect to the hidden rows of the
    /// whole batch, and to that of the embedding; sets or adds to those of the block.
    pub(super) fn mtp_backward<'a>(
        &self,
        pool: &'a Pool,
        mut tape: MtpTape<'a>,
        d: &[f32],
        d_hidden: &mut [f32],
        (gradients, embedding): (&mut MtpWeights, &mut [f32]),
        mode: Output,
    ) {
        let Some(mtp) = &self.mtp else { return };
        let (width, scale) = (self.config.hidden, self.config.scales.embedding);
        let pass = self.pass(pool, batch_positions(&tape.batch));
        let tokens = std::mem::take(&mut tape.batch.tokens);
        let rows = std::mem::take(&mut tape.rows);
        let d_pairs = mtp.backward(&pass, tape, d, gradients, mode);
        for ((&token, row), d) in tokens.iter().zip(rows).zip(d_pairs.chunks_exact(2 * width)) {
            let (d_embedding, d_row) = d.split_at(width);
            let embedding = &mut embedding[token as usize * width..][..width];
            embedding.iter_mut().zip(d_embedding).for_each(|(sum, d)| *sum += d * scale);
            let hidden = &mut d_hidden[row * width..][..width];
            hidden.iter_mut().zip(d_row).for_each(|(sum, d)| *sum += d);
        }
    }
}
