use super::ExpertSet;
use crate::Config;

/// Keys and values of the tokens that a sequence has so far, in every layer.
#[derive(Clone)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
    pub(super) len: usize,
    width: usize,
}

/// **Shapes**: keys, values `[len, kv_heads · head_dim]`; keys are rotated to their positions.
#[derive(Clone, Default)]
pub(super) struct LayerCache {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl KvCache {
    /// A cache without tokens.
    pub fn new(config: &Config) -> Self {
        KvCache {
            layers: vec![LayerCache::default(); config.layers],
            len: 0,
            width: config.kv_heads * config.head_dim,
        }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for layer in &mut self.layers {
            layer.keys.truncate(self.len * self.width);
            layer.values.truncate(self.len * self.width);
        }
    }

    /// Memory that one token takes, in bytes.
    pub fn bytes_per_token(config: &Config) -> usize {
        config.layers * 2 * config.kv_heads * config.head_dim * size_of::<f32>()
    }
}

/// New tokens of one sequence, to stand after those its cache holds.
pub struct Input<'a> {
    /// At least one.
    pub tokens: &'a [u32],
    pub cache: &'a mut KvCache,
    pub experts: ExpertSet,
}
