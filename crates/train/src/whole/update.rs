//! The optimiser's step on what is trained.

use kernel::Pool;
use kernel::ops::{self, AdamW};
use model::TensorInfo;

use super::Training;
use crate::Optimizer;
use crate::muon::{self, Matrix};
use crate::options::gradient_scale;

/// What moves a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
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

fn rule(info: &TensorInfo, optimizer: Optimizer) -> Rule {
    let name = info.name.as_str();
    let small = ["embed_tokens", "lm_head", "router.layer"].iter().any(|part| name.contains(part));
    match info.shape[..] {
        _ if name.ends_with("e_score_correction_bias") => Rule::None,
        [_] => Rule::AdamW { decays: false },
        _ if small || name.ends_with("gate.weight") => Rule::AdamW { decays: true },
        [rows, _] if optimizer == Optimizer::Muon => Rule::Muon { count: 1, rows },
        [count, rows, _] if optimizer == Optimizer::Muon => Rule::Muon { count, rows },
        _ => Rule::AdamW { decays: true },
    }
}

/// A tensor with what it takes to move it.
pub(super) struct Moved<'a> {
    rule: Rule,
    weights: &'a mut [f32],
    mean: &'a mut [f32],
    square: &'a mut [f32],
    gradient: &'a [f32],
}

impl<'a> Moved<'a> {
    /// The states are the weights and the running means of the gradient and its square.
    pub(super) fn new(
        info: &TensorInfo,
        optimizer: Optimizer,
        [weights, mean, square]: [&'a mut [f32]; 3],
        gradient: &'a [f32],
    ) -> Self {
        Moved { rule: rule(info, optimizer), weights, mean, square, gradient }
    }
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
    for Moved { rule, weights, mean, square, gradient } in moved {
        match rule {
            Rule::None => {}
            Rule::AdamW { decays } => {
                let weight_decay = if decays { training.weight_decay } else { 0.0 };
                let step = AdamW { weight_decay, ..adamw };
                ops::adamw(pool, weights, gradient, mean, square, step);
            }
            Rule::Muon { count, rows } => {
                matrices.extend(Matrix::stacked(rows, count, [weights, mean], gradient));
            }
        }
    }
    muon::update(pool, &mut matrices, learning_rate, training.weight_decay);
    norm
}
