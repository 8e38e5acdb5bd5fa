//! What the optimiser remembers of each tensor's gradients.

use std::path::Path;

use kernel::ops::bytes_of_means;
use model::{NamedValues, TensorInfo, Values};

use super::Training;
use super::update::Rule;
use crate::Error;
use crate::checkpoint::State;

/// The running means of tensors, as many of each as what moves it needs, one after the other.
pub(crate) struct Means(NamedValues);

impl Means {
    /// Of these tensors, all zero.
    pub(crate) fn zeros(tensors: &[TensorInfo], training: &Training) -> Self {
        let each = tensors.iter().flat_map(|info| {
            let rule = Rule::of(info, training.optimizer);
            let names = rule.means().iter().map(|mean| format!("{}.{mean}", info.name));
            names.map(move |name| match in_bytes(rule, training) {
                true => (name, Values::U8(vec![0; bytes_of_means(info.len())])),
                false => (name, Values::F32(vec![0.0; info.len()])),
            })
        });
        Means(NamedValues(each.collect()))
    }

    /// How much memory those of these tensors take.
    pub(super) fn bytes(tensors: &[TensorInfo], training: &Training) -> u64 {
        let each = tensors.iter().map(|info| {
            let rule = Rule::of(info, training.optimizer);
            let bytes = match in_bytes(rule, training) {
                true => bytes_of_means(info.len()),
                false => 4 * info.len(),
            };
            (rule.means().len() * bytes) as u64
        });
        each.sum()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Values> {
        self.0.0.iter_mut().map(|(_, values)| values)
    }

    pub(super) fn ask_for_huge_pages(&self) {
        for (_, values) in &self.0.0 {
            match values {
                Values::F32(values) => kernel::huge_pages(values),
                Values::U8(bytes) => kernel::huge_pages(bytes),
            }
        }
    }
}

/// Vectors are too few to save memory on.
fn in_bytes(rule: Rule, training: &Training) -> bool {
    training.state_bits == 8 && rule == Rule::AdamW { decays: true }
}

const WEIGHTS: &str = "weights.safetensors";
const MEANS: &str = "means.safetensors";

impl<W> State<W, Means> {
    /// Before the first step.
    pub(crate) fn new(weights: W, tensors: &[TensorInfo], training: &Training) -> Self {
        State { step: 0, weights, means: Means::zeros(tensors, training) }
    }

    /// As [`State::save`].
    pub(crate) fn save_files(
        &self,
        folder: &Path,
        write: impl Fn(&W, &Path) -> Result<(), model::Error>,
    ) -> Result<(), Error> {
        self.save(folder, |path| {
            write(&self.weights, &path.join(WEIGHTS))?;
            self.means.0.write_file(&path.join(MEANS))
        })
    }

    /// As [`State::resume`], of these tensors.
    pub(crate) fn resume_files(
        folder: &Path,
        tensors: &[TensorInfo],
        training: &Training,
        read: impl Fn(&Path) -> Result<W, model::Error>,
    ) -> Result<Option<Self>, Error> {
        State::resume(folder, |path| {
            let mut means = Means::zeros(tensors, training);
            means.0.read_file(&path.join(MEANS))?;
            Ok((read(&path.join(WEIGHTS))?, means))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Optimizer;
    use crate::scratch::Options;

    #[test]
    fn a_tensor_has_the_means_that_its_rule_needs() {
        let options = Options { hidden: 64, heads: 2, kv_heads: 1, ..Options::default() };
        let tensors = options.config(100, None, vec![]).tensors();
        let values: u64 = tensors.iter().map(|info| info.len() as u64).sum();
        let bytes = |optimizer, state_bits| {
            let training = Options { optimizer, state_bits, ..options.clone() }.training();
            let means = Means::zeros(&tensors, &training);
            let each = means.0.0.iter().map(|(_, values)| match values {
                Values::F32(values) => 4 * values.len(),
                Values::U8(bytes) => bytes.len(),
            });
            let bytes = each.sum::<usize>() as u64;
            assert_eq!(bytes, Means::bytes(&tensors, &training));
            bytes as f64 / values as f64
        };
        let near = |found: f64, expected: f64| (found - expected).abs() < 0.05;
        assert!(near(bytes(Optimizer::AdamW, 32), 8.0));
        assert!(near(bytes(Optimizer::AdamW, 8), 2.0 * 33.0 / 32.0));
        assert!(near(bytes(Optimizer::Muon, 32), 4.0));
    }
}
