//! Experts that the material uses most, tuned alone.
//!
//! **Source**: Wang et al. 2024, arXiv 2407.01906, section 4: a sample of the material is run, each
//! expert scored by its mean gate or its share of the tokens, and in each layer the fewest experts
//! taken whose scores add up to a share. The list is written as theirs is.

use std::collections::BTreeMap;

use kernel::{Pool, Precision};
use model::{Batch, Config, Decoder, Keep, NamedTensors, Purpose, TensorInfo, Weights};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Options, Score};
use crate::Sample;
use crate::schedule::runs;
use crate::whole::{Place, parts_of};

/// Which experts are tuned.
pub(crate) const EXPERTS_FILE: &str = "expert_cfg.json";

/// The file's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Chosen {
    /// Layer by layer, counted from 0; the most used first.
    experts: BTreeMap<usize, Vec<usize>>,
    shared_experts: bool,
    non_expert_modules: bool,
}

/// Runs a sample of the material and chooses the experts.
pub(crate) fn probe(
    pool: &Pool,
    precision: Precision,
    config: &Config,
    weights: &Weights,
    samples: &[Sample],
    options: &Options,
) -> Chosen {
    let mut order: Vec<usize> = (0..samples.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(options.seed));
    let mut left = options.probe_tokens;
    let sample: Vec<&[u32]> = order
        .iter()
        .map_while(|&index| {
            let tokens = &samples[index].tokens[..samples[index].tokens.len().min(left)];
            left -= tokens.len();
            (!tokens.is_empty()).then_some(tokens)
        })
        .collect();
    let purpose = Purpose::WholeTraining;
    let decoder = Decoder::of_weights(pool, config, precision, purpose, weights);
    let lengths: Vec<usize> = sample.iter().map(|tokens| tokens.len()).collect();
    let mut scores: Vec<Vec<f64>> = Vec::new();
    for run in runs(&lengths, options.micro_batch_tokens) {
        let batch = Batch::of(sample[run].iter().copied());
        let tape =
            decoder.train_forward(pool, &batch, decoder.train_stem(pool, &batch), Keep::Inputs);
        let counts: Vec<Vec<f64>> = match options.score {
            Score::Gate => tape.gates().collect(),
            Score::Token => tape
                .loads()
                .map(|loads| loads.into_iter().map(|load| load as f64).collect())
                .collect(),
        };
        match scores.is_empty() {
            true => scores = counts,
            false => {
                let each = scores.iter_mut().flatten().zip(counts.into_iter().flatten());
                each.for_each(|(sum, count)| *sum += count);
            }
        }
    }
    let first = config.routing.map_or(0, |routing| routing.dense_layers);
    let share = f64::from(options.share);
    let layers = scores.iter().enumerate();
    Chosen {
        experts: layers.map(|(index, scores)| (first + index, choose(scores, share))).collect(),
        shared_experts: false,
        non_expert_modules: false,
    }
}

/// The fewest experts whose scores add up to a share of all scores, the highest first; among equals
/// the first.
fn choose(scores: &[f64], share: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let wanted = share * scores.iter().sum::<f64>();
    let (mut sum, mut chosen) = (0.0, Vec::new());
    for expert in order {
        chosen.push(expert);
        sum += scores[expert];
        // Sums of the same numbers in another order may fall short by their rounding.
        if sum >= wanted * (1.0 - 1e-12) {
            break;
        }
    }
    chosen
}

impl Chosen {
    /// How many there are, over all layers.
    pub(crate) fn count(&self) -> usize {
        self.experts.values().map(Vec::len).sum()
    }

    /// The matrices of these experts: names and shapes, and where they are.
    pub(crate) fn places(&self, config: &Config) -> (Vec<TensorInfo>, Vec<Place>) {
        let (mut infos, mut places) = (Vec::new(), Vec::new());
        for (tensor, info) in config.tensors().into_iter().enumerate() {
            let Some((layer, part)) = layer_of(&info.name) else { continue };
            let Some(chosen) = self.experts.get(&layer) else { continue };
            if let [count, rows, cols] = info.shape[..] {
                // Stacked: some rows of one tensor are an expert's.
                let size = rows * cols;
                for expert in (0..count).filter(|expert| chosen.contains(expert)) {
                    let name = format!("{}.{expert}", info.name);
                    infos.push(TensorInfo { name, shape: vec![rows, cols] });
                    places.push(Place { tensor, range: expert * size..(expert + 1) * size });
                }
            } else if expert_of(part).is_some_and(|expert| chosen.contains(&expert)) {
                places.push(Place { tensor, range: 0..info.len() });
                infos.push(info);
            }
        }
        (infos, places)
    }
}

/// `model.layers.3.mlp.experts.5.up_proj.weight`: 3 and `mlp.experts.5.up_proj.weight`.
fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

fn expert_of(part: &str) -> Option<usize> {
    part.split_once(".experts.")?.1.split('.').next()?.parse().ok()
}

/// The values at these places, to be trained.
pub(crate) fn initial(
    weights: &Weights,
    config: &Config,
    infos: Vec<TensorInfo>,
    places: &[Place],
) -> NamedTensors {
    let parts = parts_of(weights, config, places).map(<[f32]>::to_vec);
    NamedTensors(infos.into_iter().zip(parts).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_that_have_the_share_are_chosen() {
        let check = |share: f64, expected: &[usize]| {
            assert_eq!(choose(&[1.0, 4.0, 2.0, 3.0], share), expected, "{share}");
        };
        check(0.01, &[1]);
        check(0.4, &[1]);
        check(0.5, &[1, 3]);
        check(0.7, &[1, 3]);
        check(0.71, &[1, 3, 2]);
        check(1.0, &[1, 3, 2, 0]);
        assert_eq!(choose(&[0.1; 10], 1.0).len(), 10);
        assert_eq!(choose(&[0.1; 10], 0.3), [0, 1, 2], "the first among equals");
    }
}
