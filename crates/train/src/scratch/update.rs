//! The optimiser's step on all weights.

use kernel::Pool;
use kernel::ops::{self, AdamW};
use model::{Config, TensorInfo, Weights};

use super::Options;
use crate::Optimizer;
use crate::checkpoint::State;
use crate::muon::{self, Matrix};
use crate::options::gradient_scale;

/// The global norm of the gradients.
pub(super) fn norm(pool: &Pool, config: &Config, gradients: &Weights) -> f32 {
    let tensors = gradients.tensors(config);
    tensors.iter().map(|(_, values)| ops::sum_of_squares(pool, values)).sum::<f64>().sqrt() as f32
}

/// What moves a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    Muon,
    AdamW,
    /// The balance of the loads does, not a gradient.
    None,
}

fn rule(info: &TensorInfo, optimizer: Optimizer) -> Rule {
    let name = info.name.as_str();
    let vocabulary = name.contains("embed_tokens") || name.contains("lm_head");
    match info.shape[..] {
        _ if name.ends_with("e_score_correction_bias") => Rule::None,
        [_] => Rule::AdamW,
        _ if vocabulary || name.ends_with("gate.weight") => Rule::AdamW,
        _ if optimizer == Optimizer::Muon => Rule::Muon,
        _ => Rule::AdamW,
    }
}

/// Moves the weights of `state` along `gradients`, whose norm is `norm`.
pub(super) fn update(
    pool: &Pool,
    config: &Config,
    options: &Options,
    state: &mut State<Weights>,
    gradients: &Weights,
    norm: f32,
    learning_rate: f32,
) {
    let adamw = AdamW {
        learning_rate,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
        step: state.step as u32 + 1,
        gradient_scale: gradient_scale(options.clip, norm),
    };
    let means = state.mean.tensors_mut(config).into_iter().zip(state.square.tensors_mut(config));
    let tensors = state.weights.tensors_mut(config).into_iter().zip(gradients.tensors(config));
    let mut matrices = Vec::new();
    for (((info, weights), (_, gradient)), ((_, mean), (_, square))) in tensors.zip(means) {
        match rule(&info, options.optimizer) {
            Rule::None => {}
            Rule::AdamW => {
                let decay = if info.shape.len() > 1 { options.weight_decay } else { 0.0 };
                let step = AdamW { weight_decay: decay, ..adamw };
                ops::adamw(pool, weights, gradient, mean, square, step);
            }
            Rule::Muon => {
                let (rows, _) = info.rows_cols();
                matrices.push(Matrix { rows, weights, gradient, momentum: mean });
            }
        }
    }
    muon::update(pool, &mut matrices, learning_rate, options.weight_decay);
}
