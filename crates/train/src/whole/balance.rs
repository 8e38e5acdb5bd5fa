//! How evenly the experts are used, and what keeps them so.

use model::Weights;
use serde::{Deserialize, Serialize};

/// Tokens of each expert, layer by layer, over a whole step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Loads(Vec<Vec<usize>>);

/// How a step's tokens spread over the experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Balance {
    /// The largest load of an expert, less the mean, in means; the worst layer's.
    ///
    /// **Source**: Wang et al. 2024, arXiv 2408.15664 (MaxVio).
    pub max_violation: f32,
    /// Experts without a token, over all layers.
    pub idle: usize,
    /// The balance loss by sequence, mean over layers and tokens: 1 where each sequence uses its
    /// experts evenly, more where not.
    ///
    /// **Source**: arXiv 2412.19437, eq. 17 to 20, without the weight.
    #[serde(default)]
    pub sequence: f32,
}

impl Loads {
    pub(crate) fn add(&mut self, loads: impl Iterator<Item = Vec<usize>>) {
        for (layer, loads) in loads.enumerate() {
            match self.0.get_mut(layer) {
                Some(sums) => sums.iter_mut().zip(loads).for_each(|(sum, load)| *sum += load),
                None => self.0.push(loads),
            }
        }
    }

    /// None in a dense model; `sequence` is the balance loss by sequence.
    pub(crate) fn balance(&self, sequence: f32) -> Option<Balance> {
        if self.0.is_empty() {
            return None;
        }
        let violation = |loads: &Vec<usize>| {
            let mean = loads.iter().sum::<usize>() as f32 / loads.len() as f32;
            let largest = *loads.iter().max().unwrap_or(&0) as f32;
            largest / mean.max(f32::MIN_POSITIVE) - 1.0
        };
        Some(Balance {
            max_violation: self.0.iter().map(violation).fold(0.0, f32::max),
            idle: self.0.iter().flatten().filter(|&&load| load == 0).count(),
            sequence,
        })
    }

    /// Moves the biases towards equal loads, their mean staying as it is.
    ///
    /// **Source**: arXiv 2408.15664, algorithm 1; centred as in Ling 2.0.
    pub(crate) fn level(&self, weights: &mut Weights, rate: f32) {
        // The first layers of some models have no experts.
        let further = weights.mtp.iter_mut().map(|mtp| &mut mtp.layer);
        let layers = weights.layers.iter_mut().chain(further);
        let routed = layers.filter(|layer| !layer.router.is_empty());
        for (loads, layer) in self.0.iter().zip(routed) {
            let mean = loads.iter().sum::<usize>() as f32 / loads.len() as f32;
            let sign = |load: usize| match mean - load as f32 {
                0.0 => 0.0,
                lack => lack.signum(),
            };
            let center = loads.iter().map(|&load| sign(load)).sum::<f32>() / loads.len() as f32;
            for (bias, &load) in layer.bias.iter_mut().zip(loads) {
                *bias += rate * (sign(load) - center);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Options;

    #[test]
    fn biases_move_towards_equal_loads_and_stay_centred() {
        let options =
            Options { hidden: 8, heads: 2, kv_heads: 1, experts: 4, ..Options::default() };
        let config = model::Config { layers: 2, ..options.config(10, None, vec![]) };
        let mut weights = Weights::zeros(&config);
        let mut loads = Loads::default();
        loads.add([vec![3, 1, 0, 0], vec![1, 1, 1, 1]].into_iter());
        loads.add([vec![3, 1, 0, 0], vec![1, 1, 1, 1]].into_iter());
        assert_eq!(
            loads.balance(1.5),
            Some(Balance { max_violation: 2.0, idle: 2, sequence: 1.5 })
        );
        loads.level(&mut weights, 0.1);
        let bias = &weights.layers[0].bias;
        assert!(bias[0] < bias[1] && bias[2] == bias[3] && bias[1] < bias[2], "{bias:?}");
        assert!(bias.iter().sum::<f32>().abs() < 1e-6);
        assert_eq!(weights.layers[1].bias, [0.0; 4]);
        assert_eq!(Loads::default().balance(0.0), None, "a dense model");
    }
}
