//! Department experts beside the frozen feed-forward.
//!
//! `y = shared(x) + Σ gᵢ · Eᵢ(x)`: the gates are the softmax over the two largest of the permitted
//! experts' router logits and the null expert's, which is 0. The null expert itself is zero and
//! costs nothing.

use std::ops::Range;

use kernel::{Buffer, Left, Output, Packed, Pool, Precision, matmul, ops};

use super::ExpertSet;
use super::layer::Pass;
use super::linear::{Linear, Purpose};
use super::observe::Place;

/// One department's expert, in f32: what is trained, saved and joined.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertWeights {
    pub width: usize,
    pub hidden: usize,
    /// One for each layer of the decoder; [empty](ExpertLayer::is_empty) where the expert has no
    /// part.
    pub layers: Vec<ExpertLayer>,
}

/// One expert in one layer. Also the form of its gradients and of the optimiser's states.
///
/// **Shapes**: router `[hidden]`; gate_up `[2·width, hidden]`, gate rows first; down
/// `[hidden, width]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertLayer {
    pub router: Vec<f32>,
    pub gate_up: Vec<f32>,
    pub down: Vec<f32>,
}

impl ExpertLayer {
    /// All zero: an expert that changes nothing.
    pub fn zeros(hidden: usize, width: usize) -> Self {
        ExpertLayer {
            router: vec![0.0; hidden],
            gate_up: vec![0.0; 2 * width * hidden],
            down: vec![0.0; hidden * width],
        }
    }

    /// Whether the expert has no part in this layer: as if its weights and router row were zero.
    pub fn is_empty(&self) -> bool {
        self.router.is_empty()
    }
}

impl ExpertWeights {
    /// All zero, in the layers of `placement` of a decoder with `layers` layers.
    pub fn zeros(layers: usize, placement: Range<usize>, hidden: usize, width: usize) -> Self {
        let layer = |index| match placement.contains(&index) {
            true => ExpertLayer::zeros(hidden, width),
            false => ExpertLayer::default(),
        };
        ExpertWeights { width, hidden, layers: (0..layers).map(layer).collect() }
    }

    /// The first layer in which the expert has a part.
    pub fn first_layer(&self) -> usize {
        self.layers.iter().position(|l| !l.is_empty()).unwrap_or(self.layers.len())
    }

    /// How many values the expert holds.
    pub fn parameters(&self) -> usize {
        self.tensors().map(|(_, _, values)| values.len()).sum()
    }

    /// Every tensor with its name, `layers.3.down`, and shape, in a fixed order.
    pub fn tensors(&self) -> impl Iterator<Item = (String, [usize; 2], &Vec<f32>)> {
        let (width, hidden) = (self.width, self.hidden);
        let placed = self.layers.iter().enumerate().filter(|(_, layer)| !layer.is_empty());
        placed.flat_map(move |(index, layer)| {
            [
                (format!("layers.{index}.router"), [1, hidden], &layer.router),
                (format!("layers.{index}.gate_up"), [2 * width, hidden], &layer.gate_up),
                (format!("layers.{index}.down"), [hidden, width], &layer.down),
            ]
        })
    }

    /// The tensors' values, in the order of [`ExpertWeights::tensors`].
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        let placed = self.layers.iter_mut().filter(|layer| !layer.is_empty());
        placed.flat_map(|l| [&mut l.router, &mut l.gate_up, &mut l.down])
    }
}

/// The experts of one layer, ready for use.
pub(super) struct Mixture {
    hidden: usize,
    /// `[experts, hidden]`.
    router: Linear,
    /// None for an expert without a part in this layer: its gate is computed, its output is zero.
    experts: Vec<Option<Expert>>,
}

struct Expert {
    width: usize,
    gate_up: Linear,
    down: Linear,
}

impl Mixture {
    /// # Panics
    /// If the weights' lengths do not fit their shapes.
    pub(super) fn new(
        pool: &Pool,
        precision: Precision,
        purpose: Purpose,
        hidden: usize,
        experts: &[(usize, &ExpertLayer)],
    ) -> Self {
        let mut rows = vec![0.0; experts.len() * hidden];
        for (row, (_, layer)) in rows.chunks_exact_mut(hidden).zip(experts) {
            if !layer.is_empty() {
                row.copy_from_slice(&layer.router);
            }
        }
        let linear = |values: &[f32], n, k| Linear::new(pool, precision, purpose, values, n, k);
        Mixture {
            hidden,
            // Routing decisions stay in f32.
            router: Linear::new(pool, Precision::F32, purpose, &rows, experts.len(), hidden),
            experts: experts
                .iter()
                .map(|&(width, layer)| {
                    (!layer.is_empty()).then(|| Expert {
                        width,
                        gate_up: linear(&layer.gate_up, 2 * width, hidden),
                        down: linear(&layer.down, hidden, width),
                    })
                })
                .collect(),
        }
    }

    /// Adds the permitted experts' part of each row of `x` to `out`; their gates, to `gates`.
    ///
    /// **Shapes**: x, out `[tokens, hidden]`; sets `[tokens]`; gates `[tokens, experts]`.
    pub(super) fn forward(
        &self,
        pass: &Pass,
        out: &mut [f32],
        x: &[f32],
        (layer, sets): (usize, &[ExpertSet]),
        gates: &mut [f32],
    ) {
        let (pool, count) = (pass.pool, self.experts.len());
        let mut weights = vec![0.0; sets.len() * count];
        self.router.forward(pool, &mut weights, x, Output::Replace);
        for (logits, set) in weights.chunks_exact_mut(count).zip(sets) {
            select(logits, *set);
        }
        for (index, expert) in self.experts.iter().enumerate() {
            let Some(expert) = expert else { continue };
            let rows: Vec<usize> =
                (0..sets.len()).filter(|row| weights[row * count + index] > 0.0).collect();
            if rows.is_empty() {
                continue;
            }
            let chosen: Vec<f32> = rows
                .iter()
                .flat_map(|row| &x[row * self.hidden..][..self.hidden])
                .copied()
                .collect();
            let (gate_up, y) = expert.forward(pool, &chosen);
            if pass.watcher.is_some() {
                // The null expert stands last.
                let part = [index, count + 1];
                pass.see(layer, Place::Expert(part), &chosen, self.hidden);
                let inner = expert.inner(pool, &gate_up);
                pass.see(layer, Place::ExpertDown(part), &inner, expert.width);
            }
            for (&row, y) in rows.iter().zip(y.chunks_exact(self.hidden)) {
                let weight = weights[row * count + index];
                for (out, y) in out[row * self.hidden..].iter_mut().zip(y) {
                    *out += weight * y;
                }
            }
        }
        for (sum, weight) in gates.iter_mut().zip(&weights) {
            *sum += weight;
        }
    }

    /// The forward pass of an expert that is trained alone: every row goes through it.
    pub(super) fn train_forward<'a>(
        &self,
        pool: &'a Pool,
        out: &mut [f32],
        x: &[f32],
    ) -> MixtureStash<'a> {
        let [Some(expert)] = &self.experts[..] else { panic!("experts are trained one at a time") };
        let mut gate = vec![0.0; x.len() / self.hidden];
        self.router.forward(pool, &mut gate, x, Output::Replace);
        gate.iter_mut().for_each(|logit| *logit = sigmoid(*logit));
        let (gate_up, y) = expert.forward(pool, x);
        ops::add_weighted_rows(pool, out, &y, &gate, self.hidden);
        MixtureStash { gate, gate_up, y }
    }

    /// Adds to `dx` and to `gradients`.
    ///
    /// **Shapes**: dx `[tokens, hidden]`.
    pub(super) fn train_backward(
        &self,
        pool: &Pool,
        dx: &mut [f32],
        Upstream { x, dy, pull }: Upstream,
        stash: MixtureStash,
        gradients: &mut ExpertLayer,
    ) {
        let MixtureStash { gate, gate_up, y } = stash;
        let [Some(expert)] = &self.experts[..] else { panic!("experts are trained one at a time") };
        let tokens = gate.len();
        let mut d_logit = vec![0.0; tokens];
        ops::row_dots(pool, &mut d_logit, dy, &y, self.hidden);
        for ((d, &g), &pull) in d_logit.iter_mut().zip(&gate).zip(pull) {
            let target = if pull < 0.0 { 1.0 } else { 0.0 };
            *d = *d * g * (1.0 - g) + pull.abs() * (g - target);
        }
        let mut d_y = vec![0.0; dy.len()];
        ops::add_weighted_rows(pool, &mut d_y, dy, &gate, self.hidden);
        let precision = expert.gate_up.precision();
        let inputs = Packed::columns(pool, precision, x, tokens, self.hidden);
        expert.backward(pool, dx, &inputs, &d_y, gate_up, gradients);
        matmul(pool, &mut gradients.router, Left::Transposed(&d_logit), &inputs, Output::Add);
        self.router.backward(pool, dx, Left::Rows(&d_logit), Output::Add);
    }
}

/// What comes to [`Mixture::train_backward`] from around it.
///
/// **Shapes**: x, dy `[tokens, hidden]`; pull `[tokens]`.
pub(super) struct Upstream<'a> {
    /// The layer's input.
    pub(super) x: &'a [f32],
    /// The gradient with respect to its output.
    pub(super) dy: &'a [f32],
    /// Moves each token's gate besides: towards null where positive, towards the expert where
    /// negative (the gradient of the gate's cross-entropy, times `|pull|`).
    pub(super) pull: &'a [f32],
}

/// What [`Mixture::train_backward`] needs of the forward pass.
pub(super) struct MixtureStash<'a> {
    /// `[tokens]`.
    gate: Vec<f32>,
    /// `[tokens, 2·width]`, before the activation.
    gate_up: Buffer<'a>,
    /// `[tokens, hidden]`: the expert's output before its gate.
    y: Buffer<'a>,
}

impl Expert {
    /// The values before the activation, and the output.
    fn forward<'a>(&self, pool: &'a Pool, x: &[f32]) -> (Buffer<'a>, Buffer<'a>) {
        let gate_up = self.gate_up.apply(pool, x);
        let y = self.down.apply(pool, &self.inner(pool, &gate_up));
        (gate_up, y)
    }

    fn inner(&self, pool: &Pool, gate_up: &[f32]) -> Vec<f32> {
        let mut inner = vec![0.0; gate_up.len() / 2];
        ops::swiglu(pool, &mut inner, gate_up, self.width);
        inner
    }

    fn backward(
        &self,
        pool: &Pool,
        dx: &mut [f32],
        inputs: &Packed,
        dy: &[f32],
        mut gate_up: Buffer,
        gradients: &mut ExpertLayer,
    ) {
        let tokens = gate_up.len() / (2 * self.width);
        let mut inner = vec![0.0; tokens * self.width];
        ops::swiglu(pool, &mut inner, &gate_up, self.width);
        let packed = Packed::columns(pool, self.down.precision(), &inner, tokens, self.width);
        matmul(pool, &mut gradients.down, Left::Transposed(dy), &packed, Output::Add);
        let d_inner = &mut inner;
        self.down.backward(pool, d_inner, Left::Rows(dy), Output::Replace);
        ops::swiglu_backward(pool, &mut gate_up, d_inner, self.width);
        matmul(pool, &mut gradients.gate_up, Left::Transposed(&gate_up), inputs, Output::Add);
        self.gate_up.backward(pool, dx, Left::Rows(&gate_up), Output::Add);
    }
}

/// Turns router logits into gates: softmax over the two largest of the permitted experts and null;
/// the others get 0. Among equals the lower index goes first, null last.
fn select(logits: &mut [f32], set: ExpertSet) {
    let null = logits.len();
    let logit = |index: usize, logits: &[f32]| if index == null { 0.0 } else { logits[index] };
    let mut best: [Option<usize>; 2] = [None, None];
    for index in (0..null).filter(|&i| set.contains(i)).chain([null]) {
        let beats = |other: Option<usize>| {
            other.is_none_or(|other| logit(index, logits) > logit(other, logits))
        };
        if beats(best[0]) {
            best = [Some(index), best[0]];
        } else if beats(best[1]) {
            best[1] = Some(index);
        }
    }
    let [Some(first), second] = best else { unreachable!("null is always there") };
    let top = logit(first, logits);
    let second_weight = second.map_or(0.0, |s| (logit(s, logits) - top).exp());
    logits.fill(0.0);
    for (index, weight) in [(Some(first), 1.0), (second, second_weight)] {
        if let Some(index) = index.filter(|&i| i != null) {
            logits[index] = weight / (1.0 + second_weight);
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(logits: &[f32], set: ExpertSet, expected: &[f32]) {
        let mut gates = logits.to_vec();
        select(&mut gates, set);
        for (a, b) in gates.iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{logits:?} with {set:?}: {gates:?}");
        }
    }

    #[test]
    fn gates_are_the_softmax_over_the_best_two_and_null() {
        let all = ExpertSet::all(3);
        check(&[1.0, -1.0, -2.0], all, &[sigmoid(1.0), 0.0, 0.0]);
        check(&[3.0, -1.0, 2.0], all, &[sigmoid(1.0), 0.0, sigmoid(-1.0)]);
        check(&[-3.0, -1.0, -2.0], all, &[0.0, sigmoid(-1.0), 0.0]);
    }

    #[test]
    fn an_expert_alone_is_gated_by_the_sigmoid_whatever_the_others_say() {
        for logit in [-2.0, 0.0, 0.5] {
            check(&[9.0, logit, 9.0], ExpertSet::single(1), &[0.0, sigmoid(logit), 0.0]);
        }
        check(&[9.0, 1.0], ExpertSet::NONE, &[0.0, 0.0]);
    }
}
