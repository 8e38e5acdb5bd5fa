//! Experts of a model's own, as a file stores them: what text is generated with.

use std::borrow::Cow;

use kernel::quant::TiledExperts;
use kernel::{Arena, Matrix, Pool, Precision, Router, Routes};

use super::LayerWeights;
use super::feed_forward::{FeedForward, Fused, choose};
use super::linear::{Linear, Purpose};
use super::load::Reader;
use crate::{Config, Error, TensorInfo};

/// Routed experts, and what all tokens go through, in tiles.
pub(super) struct StoredExperts {
    pub(super) router: Router,
    /// As in [`Fused`].
    factor: f32,
    /// `[experts, hidden]`: routing decisions stay in f32.
    logits: Linear,
    /// Empty in families without.
    bias: Vec<f32>,
    pub(super) routed: TiledExperts,
    shared: Option<TiledExperts>,
}

impl StoredExperts {
    /// Adds to each row of `out` what its experts make of the row of `x`.
    ///
    /// **Shapes**: x, out `[tokens, hidden]`.
    pub(super) fn forward(&self, pool: &Pool, out: &mut [f32], x: &[f32]) {
        if let Some(shared) = &self.shared {
            let routes = Routes::dense(x.len() / self.logits.inputs());
            shared.forward(pool, out, x, &routes.weighted(self.factor));
        }
        let chosen = choose(pool, self.router, &self.logits, &self.bias, x);
        self.routed.forward(pool, out, x, &chosen.routes);
    }

    /// How many of the [bytes](Self::bytes) lie in a file.
    pub(super) fn bytes_in_file(&self) -> usize {
        if self.routed.in_file() { self.routed.bytes() } else { 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.routed.bytes() + self.shared.as_ref().map_or(0, TiledExperts::bytes)
    }
}

/// The matrices of a layer with experts, as they are stored; empty where there is none.
struct Parts {
    router: Vec<Matrix>,
    bias: Vec<f32>,
    gate_up: Vec<Matrix>,
    down: Vec<Matrix>,
    shared_gate_up: Vec<Matrix>,
    shared_down: Vec<Matrix>,
}

impl Reader<'_> {
    /// The feed-forward of a layer with experts: as stored where the formats and sizes allow it.
    pub(super) fn experts(&mut self, layer: usize) -> Result<FeedForward, Error> {
        let parts = self.expert_parts(layer)?;
        match self.stored(&parts) {
            Some(stored) => Ok(FeedForward::Stored(Box::new(stored))),
            None => Ok(FeedForward::Fused(self.expanded(layer, &parts))),
        }
    }

    fn stored(&mut self, parts: &Parts) -> Option<StoredExperts> {
        let routing = self.config.routing?;
        let (pool, gate) = (self.pool, self.config.family.gate());
        let tiled = |arena: &mut Arena, experts, gate_up: &[Matrix], down: &[Matrix]| {
            let (gate_up, down) = (stacked(gate_up)?, stacked(down)?);
            TiledExperts::new(pool, arena, experts, gate, [&gate_up, &down]).ok()
        };
        let arena = self.expert_arena.as_mut().unwrap_or(&mut self.arena);
        let routed = tiled(arena, routing.experts, &parts.gate_up, &parts.down)?;
        let shared = match parts.shared_down.is_empty() {
            true => None,
            false => Some(tiled(&mut self.arena, 1, &parts.shared_gate_up, &parts.shared_down)?),
        };
        let values: Vec<f32> = parts.router.iter().flat_map(Matrix::to_f32).collect();
        let (experts, hidden, factor) =
            (routing.experts, self.config.hidden, self.config.scales.residual);
        let (precision, purpose) = (Precision::F32, Purpose::Generation);
        Some(StoredExperts {
            router: routing.router(factor),
            factor,
            logits: Linear::new(pool, precision, purpose, &values, experts, hidden),
            bias: parts.bias.clone(),
            routed,
            shared,
        })
    }

    fn expanded(&self, layer: usize, parts: &Parts) -> Fused {
        let values = |part: &[Matrix]| part.iter().flat_map(Matrix::to_f32).collect();
        let weights = LayerWeights {
            router: values(&parts.router),
            bias: parts.bias.clone(),
            expert_gate_up: values(&parts.gate_up),
            expert_down: values(&parts.down),
            gate_up: values(&parts.shared_gate_up),
            down: values(&parts.shared_down),
            ..LayerWeights::default()
        };
        let mut fused = Fused::unset(self.config, layer, self.precision, self.purpose);
        fused.fill(self.pool, &weights);
        fused
    }

    /// The layer's last tensors are those of its feed-forward, in the order of [`LayerWeights`].
    fn expert_parts(&self, layer: usize) -> Result<Parts, Error> {
        let [router, bias, gate_up, down, shared_gate_up, shared_down] =
            LayerWeights::feed_forward_lengths(self.config, layer);
        let mut left = self.config.tensors_of(layer);
        let mut take = |len: usize| {
            let (mut found, mut taken) = (0, Vec::new());
            while found < len {
                let info = left.pop().expect("a layer's parts are made of its tensors");
                found += info.len();
                taken.push(info);
            }
            taken.reverse();
            taken
        };
        let matrices = |infos: Vec<TensorInfo>| -> Result<Vec<Matrix>, Error> {
            let read = |info: &TensorInfo| {
                let (rows, cols) = info.rows_cols();
                self.source.matrix(&info.name, rows, cols)
            };
            infos.iter().map(read).collect()
        };
        // From the last to the first.
        let shared_down = matrices(take(shared_down))?;
        let shared_gate_up = matrices(take(shared_gate_up))?;
        let down = matrices(take(down))?;
        let gate_up = matrices(take(gate_up))?;
        let mut biases = Vec::new();
        for info in take(bias) {
            biases.extend(self.source.vector(&info.name, info.len())?);
        }
        let router = matrices(take(router))?;
        Ok(Parts { router, bias: biases, gate_up, down, shared_gate_up, shared_down })
    }
}

/// The matrices on one another, if they have one format.
fn stacked(matrices: &[Matrix]) -> Option<Cow<'_, Matrix>> {
    let (first, others) = matrices.split_first()?;
    if others.is_empty() {
        return Some(Cow::Borrowed(first));
    }
    if others.iter().any(|matrix| matrix.format != first.format) {
        return None;
    }
    let rows = matrices.iter().map(|matrix| matrix.rows).sum();
    let mut bytes = Vec::with_capacity(matrices.iter().map(|matrix| matrix.bytes.len()).sum());
    matrices.iter().for_each(|matrix| bytes.extend_from_slice(&matrix.bytes));
    Some(Cow::Owned(Matrix { rows, cols: first.cols, format: first.format, bytes }))
}

impl Config {
    /// The tensors of one layer, in the order of [`Config::tensors`].
    fn tensors_of(&self, layer: usize) -> Vec<TensorInfo> {
        let prefix = format!("model.layers.{layer}.");
        self.tensors().into_iter().filter(|info| info.name.starts_with(&prefix)).collect()
    }
}
