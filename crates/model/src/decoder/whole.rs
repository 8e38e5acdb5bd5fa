//! A decoder from weights in f32, and from new ones again: what training a whole model does at each
//! step.

use kernel::ops::{self, Rotary};
use kernel::quant::Format;
use kernel::{Matrix, Pool, Precision};

use super::embedding::Embedding;
use super::feed_forward::{FeedForward, Fused};
use super::layer::{HeadNorms, Layer};
use super::linear::{Linear, Purpose};
use super::{Decoder, LayerWeights, Weights};
use crate::Config;

impl Decoder {
    /// A decoder of these weights.
    ///
    /// # Panics
    /// If the weights are not those of such a model, or a feed-forward's width is odd.
    pub fn of_weights(
        pool: &Pool,
        config: &Config,
        precision: Precision,
        purpose: Purpose,
        weights: &Weights,
    ) -> Self {
        let Config { vocab, hidden, .. } = *config;
        let embedding = Matrix {
            rows: vocab,
            cols: hidden,
            format: Format::F32,
            bytes: vec![0; 4 * vocab * hidden],
        };
        let mut decoder = Decoder {
            precision,
            purpose,
            rotary: Rotary::new(config.head_dim, config.rope_theta, config.context),
            window_rotary: None,
            embedding: Embedding::Own(embedding),
            layers: (0..config.layers).map(|_| Layer::unset(config, precision, purpose)).collect(),
            norm: vec![0.0; hidden],
            head: Linear::unset(precision, purpose, vocab, hidden),
            experts: 0,
            config: config.clone(),
        };
        decoder.fill(pool, weights);
        decoder
    }

    /// Lays out new weights in place of those that are there.
    ///
    /// # Panics
    /// As [`Decoder::of_weights`].
    pub fn fill(&mut self, pool: &Pool, weights: &Weights) {
        let Embedding::Own(matrix) = &mut self.embedding else {
            panic!("the decoder was not made of weights in f32");
        };
        ops::copy(pool, &mut matrix.bytes, bytemuck::cast_slice(&weights.embedding));
        assert_eq!(self.layers.len(), weights.layers.len(), "layers");
        for (layer, weights) in self.layers.iter_mut().zip(&weights.layers) {
            layer.fill(pool, weights);
        }
        self.norm.copy_from_slice(&weights.norm);
        let head = if self.config.tied_embeddings { &weights.embedding } else { &weights.head };
        self.head.fill(pool, head);
    }
}

impl Layer {
    fn unset(config: &Config, precision: Precision, purpose: Purpose) -> Self {
        let Config { hidden, heads, kv_heads, head_dim, .. } = *config;
        let linear = |outputs, inputs| Linear::unset(precision, purpose, outputs, inputs);
        let norm = || vec![0.0; head_dim];
        Layer {
            attention_norm: vec![0.0; hidden],
            qkv: linear((heads + 2 * kv_heads) * head_dim, hidden),
            head_norms: config.head_norms.then(|| HeadNorms { queries: norm(), keys: norm() }),
            attention_out: linear(hidden, heads * head_dim),
            attention_out_norm: None,
            feed_forward_norm: vec![0.0; hidden],
            feed_forward: FeedForward::Fused(Fused::unset(config, precision, purpose)),
            down_norm: None,
            window: None,
            mixture: None,
        }
    }

    fn fill(&mut self, pool: &Pool, weights: &LayerWeights) {
        self.attention_norm.copy_from_slice(&weights.attention_norm);
        self.qkv.fill(pool, &weights.qkv);
        if let Some(norms) = &mut self.head_norms {
            norms.queries.copy_from_slice(&weights.query_norm);
            norms.keys.copy_from_slice(&weights.key_norm);
        }
        self.attention_out.fill(pool, &weights.attention_out);
        self.feed_forward_norm.copy_from_slice(&weights.feed_forward_norm);
        let FeedForward::Fused(fused) = &mut self.feed_forward else {
            panic!("the decoder was not made of weights in f32");
        };
        fused.fill(pool, weights);
    }
}
