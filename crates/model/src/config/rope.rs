//! Rotary positions, and how they are stretched to longer contexts.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{MAX_CONTEXT, wrong};
use crate::Error;

/// Rotary positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// How many of each head's values are turned, in pairs of the first half and the second.
    pub dim: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
}

/// How positions beyond those the model was first trained on are brought near them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Scaling {
    /// All frequencies are divided. **Source**: Chen et al. 2023, arXiv 2306.15595, eq. 4.
    Linear { factor: f32 },
    /// A change of the base beyond the model's context, which is never left here.
    Dynamic { factor: f32 },
    /// Low frequencies are divided, high ones stay, those between are mixed. **Source**: Llama Team
    /// 2024, arXiv 2407.21783, section 3.4.2, as in Meta's reference code.
    Llama3 { factor: f32, low_frequency: f32, high_frequency: f32, original: usize },
    /// Likewise, by the turns within the original context; what is turned is scaled, too.
    Yarn(Yarn),
    /// Each frequency is divided by its own factor: how GGUF files hold what `Llama3` computes.
    Factors(Vec<f32>),
}

/// **Source**: Peng et al. 2023, arXiv 2309.00071, section 3.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Yarn {
    pub factor: f32,
    /// Tokens the model was first trained to see at once.
    pub original: usize,
    /// Turns within the original context above which a frequency stays.
    pub beta_fast: f32,
    /// Turns below which it is divided.
    pub beta_slow: f32,
    /// What is turned is multiplied by this; the paper's value if none is given.
    pub magnitude: Option<f32>,
    /// DeepSeek's two scales of the logarithm, of what is turned and of all dimensions; 0 for none.
    pub mscale: f32,
    pub mscale_all: f32,
    /// Whether the borders are rounded to whole dimensions.
    pub truncate: bool,
}

impl Rope {
    /// Radians per token of each pair.
    pub(crate) fn frequencies(&self) -> Vec<f32> {
        let dim = self.dim as f32;
        let plain = |i: usize| 1.0 / self.theta.powf(2.0 * i as f32 / dim);
        let mut frequencies: Vec<f32> = (0..self.dim / 2).map(plain).collect();
        match &self.scaling {
            None | Some(Scaling::Dynamic { .. }) => {}
            Some(Scaling::Linear { factor }) => {
                frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
            }
            Some(Scaling::Factors(factors)) => {
                frequencies.iter_mut().zip(factors).for_each(|(frequency, f)| *frequency /= f);
            }
            Some(Scaling::Llama3 { factor, low_frequency, high_frequency, original }) => {
                let scaled = |frequency: f32| {
                    let turns = *original as f32 * frequency / std::f32::consts::TAU;
                    let share = (turns - low_frequency) / (high_frequency - low_frequency);
                    let share = share.clamp(0.0, 1.0);
                    (1.0 - share) * frequency / factor + share * frequency
                };
                frequencies.iter_mut().for_each(|frequency| *frequency = scaled(*frequency));
            }
            Some(Scaling::Yarn(yarn)) => yarn.scale(&mut frequencies, self.theta),
        }
        frequencies
    }

    /// What the turned values are multiplied by.
    pub(crate) fn magnitude(&self) -> f32 {
        match &self.scaling {
            Some(Scaling::Yarn(yarn)) => yarn.magnitude(),
            _ => 1.0,
        }
    }

    /// By what each plain frequency is divided.
    pub(crate) fn factors(&self) -> Vec<f32> {
        let plain = Rope { scaling: None, ..self.clone() };
        let pairs = plain.frequencies().into_iter().zip(self.frequencies());
        pairs.map(|(plain, scaled)| plain / scaled).collect()
    }

    pub(super) fn check(&self, path: &Path, head_dim: usize) -> Result<(), Error> {
        if !(self.theta.is_finite() && self.theta > 0.0) {
            return Err(wrong(path, "rope_theta", self.theta, "must be above 0"));
        }
        if !self.dim.is_multiple_of(2) || self.dim == 0 || self.dim > head_dim {
            let expected = format!("must be even, and at most the head dimension, {head_dim}");
            return Err(wrong(path, "the rotated part of a head", self.dim, &expected));
        }
        let (numbers, original) = match &self.scaling {
            None => return Ok(()),
            Some(Scaling::Linear { factor } | Scaling::Dynamic { factor }) => (vec![*factor], 1),
            Some(Scaling::Factors(factors)) if factors.len() == self.dim / 2 => {
                (factors.clone(), 1)
            }
            Some(Scaling::Factors(factors)) => {
                let expected = format!("{} pairs are rotated", self.dim / 2);
                return Err(wrong(path, "the number of rope factors", factors.len(), &expected));
            }
            Some(Scaling::Llama3 { factor, low_frequency, high_frequency, original }) => {
                let (low, high) = (*low_frequency, *high_frequency);
                (vec![*factor, low, high, high - low], *original)
            }
            Some(Scaling::Yarn(yarn)) => {
                (vec![yarn.factor, yarn.beta_fast, yarn.beta_slow, yarn.magnitude()], yarn.original)
            }
        };
        if let Some(number) = numbers.iter().find(|n| !(n.is_finite() && **n > 0.0)) {
            let expected = "factors, and the high above the low, must be above 0";
            return Err(wrong(path, "a number of the rope scaling", number, expected));
        }
        if !(1..=MAX_CONTEXT).contains(&original) {
            let key = "the original context of the rope scaling";
            return Err(wrong(path, key, original, "must be a number of tokens"));
        }
        Ok(())
    }
}

impl Yarn {
    fn scale(&self, frequencies: &mut [f32], theta: f32) {
        let dim = (2 * frequencies.len()) as f64;
        // The pair that turns so often within the original context; computed as the reference does.
        let border = |turns: f32| {
            let ratio = self.original as f64 / (f64::from(turns) * std::f64::consts::TAU);
            dim * ratio.ln() / (2.0 * f64::from(theta).ln())
        };
        let (mut low, mut high) = (border(self.beta_fast), border(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        for (i, frequency) in frequencies.iter_mut().enumerate() {
            let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
            *frequency = *frequency / self.factor * divided + *frequency * (1.0 - divided);
        }
    }

    fn magnitude(&self) -> f32 {
        self.magnitude.unwrap_or_else(|| {
            if self.mscale != 0.0 && self.mscale_all != 0.0 {
                return self.logarithm(self.mscale) / self.logarithm(self.mscale_all);
            }
            self.logarithm(1.0)
        })
    }

    /// What DeepSeek multiplies the scores of all dimensions by.
    pub(super) fn scores(&self) -> f32 {
        if self.mscale_all == 0.0 { 1.0 } else { self.logarithm(self.mscale_all).powi(2) }
    }

    fn logarithm(&self, scale: f32) -> f32 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * scale * self.factor.ln() + 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_leaves_high_frequencies_and_divides_low_ones() {
        let scaling = Scaling::Llama3 {
            factor: 8.0,
            low_frequency: 1.0,
            high_frequency: 4.0,
            original: 8192,
        };
        let rope = Rope { theta: 500_000.0, dim: 128, scaling: Some(scaling) };
        let factors = rope.factors();
        assert_eq!((factors[0], factors[63]), (1.0, 8.0));
        assert!(factors.windows(2).all(|pair| pair[0] <= pair[1] + 1e-5), "{factors:?}");
        let same = Rope { scaling: Some(Scaling::Factors(factors)), ..rope.clone() };
        for (a, b) in same.frequencies().iter().zip(rope.frequencies()) {
            assert!((a / b - 1.0).abs() < 1e-6);
        }
    }
}
