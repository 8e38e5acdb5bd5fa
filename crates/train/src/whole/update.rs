//! The optimiser's step on what is trained.

use std::borrow::Borrow;

use kernel::Pool;
use kernel::ops::{self, AdamW};
use model::{TensorInfo, Values};

use super::{Means, Training};
use crate::Optimizer;
use crate::muon::{self, Matrix};
use crate::options::gradient_scale;

/// What moves a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rule {
    /// Each of `count` matrices by itself.
    Muon {
        count: usize,
        rows: usize,
    },
    AdamW {
        decays: bool,
    },
    /// The balance of the loads does, not a gradient.
    None,
}

impl Rule {
    pub(super) fn of(info: &TensorInfo, optimizer: Optimizer) -> Self {
        let name = info.name.as_str();
        let small =
            ["embed_tokens", "lm_head", "router.layer"].iter().any(|part| name.contains(part));
        match info.shape[..] {
            _ if name.ends_with("e_score_correction_bias") => Rule::None,
            [_] => Rule::AdamW { decays: false },
            _ if small || name.ends_with("gate.weight") => Rule::AdamW { decays: true },
            [rows, _] if optimizer == Optimizer::Muon => Rule::Muon { count: 1, rows },
            [count, rows, _] if optimizer == Optimizer::Muon => Rule::Muon { count, rows },
            _ => Rule::AdamW { decays: true },
        }
    }

    /// The running means that it takes.
    pub(super) fn means(self) -> &'static [&'static str] {
        match self {
            Rule::Muon { .. } => &["momentum"],
            Rule::AdamW { .. } => &["mean", "square"],
            Rule::None => &[],
        }
    }
}

/// A tensor with what it takes to move it.
pub(super) struct Moved<'a> {
    rule: Rule,
    weights: &'a mut [f32],
    gradient: &'a [f32],
    means: Vec<&'a mut Values>,
}

/// Tensors, their weights and gradients, each with its own of the running means of all.
pub(super) fn moved<'a, I: Borrow<TensorInfo>>(
    tensors: impl Iterator<Item = (I, &'a mut [f32], &'a [f32])>,
    means: &'a mut Means,
    training: &Training,
) -> Vec<Moved<'a>> {
    let mut means = means.iter_mut();
    let each = tensors.map(|(info, weights, gradient)| {
        let rule = Rule::of(info.borrow(), training.optimizer);
        let means = means.by_ref().take(rule.means().len()).collect();
        Moved { rule, weights, gradient, means }
    });
    each.collect()
}

/// Moves the weights along their gradients and counts the step, unless the gradients' global norm is
/// not finite; gives the norm.
pub(super) fn update(
    pool: &Pool,
    training: &Training,
    moved: Vec<Moved>,
    steps: &mut usize,
    learning_rate: f32,
) -> f32 {
    let squares = moved.iter().map(|moved| ops::sum_of_squares(pool, moved.gradient));
    let norm = squares.sum::<f64>().sqrt() as f32;
    if !norm.is_finite() {
        return norm;
    }
    *steps += 1;
    let adamw = AdamW {
        learning_rate,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
        step: *steps as u32,
        gradient_scale: gradient_scale(training.clip, norm),
    };
    let mut matrices = Vec::new();
    for Moved { rule, weights, gradient, means } in moved {
        let decays = rule == Rule::AdamW { decays: true };
        let weight_decay = if decays { training.weight_decay } else { 0.0 };
        let step = AdamW { weight_decay, ..adamw };
        let mut means = means.into_iter();
        match (rule, means.next(), means.next()) {
            (Rule::None, ..) => {}
            (Rule::AdamW { .. }, Some(Values::F32(mean)), Some(Values::F32(square))) => {
                ops::adamw(pool, weights, gradient, mean, square, step);
            }
            (Rule::AdamW { .. }, Some(Values::U8(mean)), Some(Values::U8(square))) => {
                ops::adamw_in_bytes(pool, weights, gradient, mean, square, step);
            }
            (Rule::Muon { count, rows }, Some(Values::F32(momentum)), None) => {
                matrices.extend(Matrix::stacked(rows, count, [weights, momentum], gradient));
            }
            _ => unreachable!("the means are those of the rule"),
        }
    }
    muon::update(pool, &mut matrices, learning_rate, training.weight_decay);
    norm
}
