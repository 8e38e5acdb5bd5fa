//! Which weights are trained.

use std::ops::Range;
use std::path::Path;

use kernel::Pool;
use model::{Config, NamedTensors, Weights};

use super::update;
use super::{Means, Training};
use crate::Error;
use crate::checkpoint::State;
use crate::tune::Adapter;

/// What training moves.
pub(crate) enum Learned {
    All(State<Weights, Means>),
    Some(Parts),
}

/// A part of a model's weights is trained, or something beside them.
pub(crate) struct Parts {
    /// What the model multiplies.
    pub(crate) weights: Weights,
    pub(crate) state: State<NamedTensors, Means>,
    pub(crate) how: How,
}

/// How what is trained becomes the model's weights.
pub(crate) enum How {
    /// It is them, place by place.
    Places(Vec<Place>),
    /// It is added to them.
    Adapter(Adapter),
}

/// A range of the values of one of [`Config::tensors`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) tensor: usize,
    pub(crate) range: Range<usize>,
}

/// The values at these places, which must be in order and apart.
pub(crate) fn parts_of<'a>(
    weights: &'a Weights,
    config: &Config,
    places: &'a [Place],
) -> impl Iterator<Item = &'a [f32]> {
    let tensors = weights.tensors(config);
    places.iter().map(move |place| &tensors[place.tensor].1[place.range.clone()])
}

/// As [`parts_of`], to change.
fn parts_of_mut<'a>(
    weights: &'a mut Weights,
    config: &Config,
    places: &[Place],
) -> Vec<&'a mut [f32]> {
    let mut tensors = weights.tensors_mut(config).into_iter().enumerate();
    let (mut at, mut left, mut start): (usize, &mut [f32], usize) = (usize::MAX, &mut [], 0);
    let mut parts = Vec::with_capacity(places.len());
    for Place { tensor, range } in places {
        if at != *tensor {
            let (index, (_, values)) =
                tensors.find(|(index, _)| index == tensor).expect("places are in order");
            (at, left, start) = (index, values, 0);
        }
        left.split_off_mut(..range.start - start).expect("places are apart");
        parts.push(left.split_off_mut(..range.len()).expect("places are within the tensor"));
        start = range.end;
    }
    parts
}

impl Learned {
    pub(crate) fn weights(&self) -> &Weights {
        match self {
            Learned::All(state) => &state.weights,
            Learned::Some(parts) => &parts.weights,
        }
    }

    pub(crate) fn step(&self) -> usize {
        match self {
            Learned::All(state) => state.step,
            Learned::Some(parts) => parts.state.step,
        }
    }

    /// How many values are trained.
    pub(crate) fn parameters(&self) -> usize {
        match self {
            Learned::All(state) => state.weights.parameters(),
            Learned::Some(parts) => parts.state.weights.parameters(),
        }
    }

    pub(crate) fn ask_for_huge_pages(&self) {
        self.weights().ask_for_huge_pages();
        if let Learned::All(state) = self {
            state.means.ask_for_huge_pages();
        }
    }

    /// # Errors
    /// As [`State::save`].
    pub(crate) fn save(&self, folder: &Path, config: &Config) -> Result<(), Error> {
        match self {
            Learned::All(state) => {
                state.save_files(folder, |weights, path| weights.write_file(config, path))
            }
            Learned::Some(parts) => parts.state.save_files(folder, NamedTensors::write_file),
        }
    }

    /// Moves what is trained along its gradient, unless that is not finite; gives its norm.
    /// `gradients` are those of all weights.
    pub(crate) fn update(
        &mut self,
        pool: &Pool,
        config: &Config,
        training: &Training,
        gradients: &Weights,
        learning_rate: f32,
    ) -> f32 {
        match self {
            Learned::All(state) => {
                let tensors = state.weights.tensors_mut(config).into_iter();
                let tensors = tensors.zip(gradients.tensors(config));
                let tensors =
                    tensors.map(|((info, weights), (_, gradient))| (info, weights, gradient));
                let moved = update::moved(tensors, &mut state.means, training);
                update::update(pool, training, moved, &mut state.step, learning_rate)
            }
            Learned::Some(parts) => parts.update(pool, config, training, gradients, learning_rate),
        }
    }
}

impl Parts {
    fn update(
        &mut self,
        pool: &Pool,
        config: &Config,
        training: &Training,
        gradients: &Weights,
        learning_rate: f32,
    ) -> f32 {
        let Parts { state, how, .. } = self;
        let own = match how {
            How::Places(_) => NamedTensors::default(),
            How::Adapter(adapter) => adapter.gradients(pool, config, &state.weights, gradients),
        };
        let gradients: Vec<&[f32]> = match how {
            How::Places(places) => parts_of(gradients, config, places).collect(),
            How::Adapter(_) => own.0.iter().map(|(_, values)| values.as_slice()).collect(),
        };
        let tensors = state.weights.0.iter_mut().zip(gradients);
        let tensors = tensors.map(|((info, weights), gradient)| (&*info, &mut **weights, gradient));
        let moved = update::moved(tensors, &mut state.means, training);
        let norm = update::update(pool, training, moved, &mut state.step, learning_rate);
        if norm.is_finite() {
            self.apply(pool, config);
        }
        norm
    }

    /// Puts what is trained into the weights that the model multiplies.
    pub(crate) fn apply(&mut self, pool: &Pool, config: &Config) {
        let Parts { weights, state, how } = self;
        match how {
            How::Places(places) => {
                let parts = parts_of_mut(weights, config, places).into_iter();
                parts.zip(&state.weights.0).for_each(|(part, (_, own))| part.copy_from_slice(own));
            }
            How::Adapter(adapter) => adapter.merge(pool, config, &state.weights, weights),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Options;

    #[test]
    fn places_are_found_in_order() {
        let options = Options { hidden: 8, heads: 2, kv_heads: 1, ..Options::default() };
        let config = model::Config { layers: 1, ..options.config(10, None, vec![]) };
        let mut weights = Weights::zeros(&config);
        let place = |tensor, range| Place { tensor, range };
        let places = [place(0, 3..5), place(0, 5..6), place(2, 0..2), place(2, 9..12)];
        let parts = parts_of_mut(&mut weights, &config, &places).into_iter().enumerate();
        parts.for_each(|(index, part)| part.fill(1.0 + index as f32));
        let read: Vec<f32> = parts_of(&weights, &config, &places).flatten().copied().collect();
        assert_eq!(read, [1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 4.0, 4.0]);
        assert_eq!(weights.embedding[..7], [0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 0.0]);
        let sum: f32 = weights.tensors(&config).iter().flat_map(|(_, values)| *values).sum();
        assert_eq!(sum, read.iter().sum::<f32>());
    }
}
