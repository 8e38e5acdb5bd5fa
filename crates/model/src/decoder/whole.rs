//! A decoder from weights in f32, and from new ones again: what training a whole model does at each
//! step.

use kernel::ops;
use kernel::quant::Format;
use kernel::{Matrix, Pool, Precision};

use super::attention::Attention;
use super::embedding::Embedding;
use super::feed_forward::{FeedForward, Fused};
use super::latent::Latent;
use super::layer::Layer;
use super::linear::{Linear, Purpose};
use super::mtp::Mtp;
use super::{Decoder, LayerWeights, Weights, rotaries};
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
        let layers = (0..config.layers).map(|l| Layer::unset(config, l, precision, purpose));
        let (rotary, window_rotary) = rotaries(config);
        let mut decoder = Decoder {
            precision,
            purpose,
            rotary,
            window_rotary,
            embedding: Embedding::Own(embedding),
            layers: layers.collect(),
            mtp: config.mtp.then(|| Mtp::unset(config, precision, purpose)),
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
        assert_eq!(self.mtp.is_some(), weights.mtp.is_some(), "a block for a further token");
        if let (Some(mtp), Some(weights)) = (&mut self.mtp, &weights.mtp) {
            mtp.fill(pool, weights);
        }
        self.set_norm(&weights.norm);
        let head = if self.config.tied_embeddings { &weights.embedding } else { &weights.head };
        self.head.fill(pool, head);
    }
}

impl Layer {
    pub(super) fn unset(
        config: &Config,
        index: usize,
        precision: Precision,
        purpose: Purpose,
    ) -> Self {
        let hidden = config.hidden;
        let linear = |outputs, inputs| Linear::unset(precision, purpose, outputs, inputs);
        let norm = || vec![0.0; hidden];
        let outer = config.family.outer_norms();
        let mut attention = Attention::new(
            config,
            linear(config.qkv_rows(), hidden),
            linear(hidden, config.attended_width()),
            Latent::unset(config, precision, purpose),
        );
        attention.window = config.window(index);
        Layer {
            attention_norm: norm(),
            attention,
            attention_out_norm: outer.then(norm),
            feed_forward_norm: norm(),
            feed_forward: FeedForward::Fused(Fused::unset(config, index, precision, purpose)),
            down_norm: outer.then(norm),
            mixture: None,
        }
    }

    pub(super) fn fill(&mut self, pool: &Pool, weights: &LayerWeights) {
        self.attention_norm.copy_from_slice(&weights.attention_norm);
        self.attention.fill(pool, weights);
        for (norm, values) in [
            (&mut self.attention_out_norm, &weights.attention_out_norm),
            (&mut self.down_norm, &weights.down_norm),
        ] {
            if let Some(norm) = norm {
                norm.copy_from_slice(values);
            }
        }
        self.feed_forward_norm.copy_from_slice(&weights.feed_forward_norm);
        let FeedForward::Fused(fused) = &mut self.feed_forward else {
            panic!("the decoder was not made of weights in f32");
        };
        fused.fill(pool, weights);
    }
}

impl Attention {
    fn fill(&mut self, pool: &Pool, weights: &LayerWeights) {
        self.qkv.fill(pool, &weights.qkv);
        self.bias.clone_from(&weights.attention_bias);
        let norms = [&weights.query_norm, &weights.key_norm];
        let norms = norms.into_iter().filter(|weight| !weight.is_empty());
        for (norm, weight) in self.norms.iter_mut().zip(norms) {
            norm.weight.copy_from_slice(weight);
        }
        if let Some(latent) = &mut self.latent {
            latent.key_value_up.fill(pool, &weights.key_value_up);
            if let Some(up) = &mut latent.query_up {
                up.fill(pool, &weights.query_up);
            }
        }
        self.out.fill(pool, &weights.attention_out);
    }
}
