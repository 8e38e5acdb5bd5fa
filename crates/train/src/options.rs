use serde::{Deserialize, Serialize};

use crate::{Error, Reading};

/// What moves the expert's matrices; its router rows always go by AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    AdamW,
    Muon,
}

/// How an expert is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Inner size of the expert in each layer.
    pub width: usize,
    /// The first layer with a part of the expert, as a share of the decoder's depth: layers below
    /// run forward once and never backward.
    pub first_layer: f32,
    pub optimizer: Optimizer,
    pub learning_rate: f32,
    /// The router row's rate, as a multiple of `learning_rate`.
    pub router_rate: f32,
    /// Times documents and statements are gone through.
    pub passes: usize,
    /// Times questions are.
    pub question_passes: usize,
    /// Tokens of one step, the base's own text not counted.
    pub batch_tokens: usize,
    /// The longest sequence; longer documents are cut.
    pub sequence_tokens: usize,
    /// The weight of a question's tokens in the loss; an answer's have 1.
    pub prompt_weight: f32,
    /// Tokens of the base's own text beside a step, on average, as a share of `batch_tokens`.
    pub negative_share: f32,
    /// Weight of KL(base ‖ model) on the base's own text, beside the loss on the material.
    pub kl_weight: f32,
    /// Weight of KL(base ‖ model) on documents, beside the loss: learned by heart they would spoil
    /// what is expected of other documents.
    pub document_kl: f32,
    /// Weight of the gate's cross-entropy towards null on the base's own text.
    pub null_weight: f32,
    /// Weight of the gate's cross-entropy towards the expert on the material.
    pub own_weight: f32,
    /// Share of the steps in which the rate rises from 0; it then falls along a cosine to 10 %.
    pub warmup: f32,
    pub weight_decay: f32,
    /// The gradient's global norm is clipped to this for AdamW; Muon's steps have a size of their
    /// own.
    pub clip: f32,
    /// Seconds between checkpoints.
    pub checkpoint_seconds: u64,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            width: 128,
            first_layer: 0.4,
            optimizer: Optimizer::Muon,
            learning_rate: 1e-2,
            router_rate: 0.5,
            passes: 2,
            question_passes: 3,
            batch_tokens: 256,
            sequence_tokens: 256,
            prompt_weight: 0.0,
            negative_share: 0.2,
            kl_weight: 2.5,
            document_kl: 2.0,
            null_weight: 0.5,
            own_weight: 0.1,
            warmup: 0.05,
            weight_decay: 0.0,
            clip: 1.0,
            checkpoint_seconds: 60,
            seed: 1,
        }
    }
}

impl Options {
    /// # Errors
    /// [`Error::Option`] naming the first value that cannot work.
    pub fn check(&self) -> Result<(), Error> {
        if !(1..=1 << 16).contains(&self.width) {
            return refuse("width", self.width.to_string(), "use 1 to 65536, 128 for instance");
        }
        if !(0.0..1.0).contains(&self.first_layer) {
            let expected = "use a share of the depth from 0 to below 1";
            return refuse("first_layer", self.first_layer.to_string(), expected);
        }
        check_learning_rate(self.learning_rate, "1e-2")?;
        if self.passes == 0 {
            return refuse("passes", "0".into(), "use at least 1");
        }
        if self.question_passes == 0 {
            return refuse("question_passes", "0".into(), "use at least 1");
        }
        if self.sequence_tokens < 2 || self.batch_tokens < self.sequence_tokens {
            let value =
                format!("{} with sequence_tokens {}", self.batch_tokens, self.sequence_tokens);
            return refuse(
                "batch_tokens",
                value,
                "a step must hold a sequence of at least 2 tokens",
            );
        }
        let shares = [
            ("router_rate", self.router_rate),
            ("prompt_weight", self.prompt_weight),
            ("negative_share", self.negative_share),
            ("kl_weight", self.kl_weight),
            ("document_kl", self.document_kl),
            ("null_weight", self.null_weight),
            ("own_weight", self.own_weight),
            ("warmup", self.warmup),
            ("weight_decay", self.weight_decay),
        ];
        check_shares(&shares, 100.0)?;
        check_clip(self.clip)
    }

    /// How material is read.
    pub fn reading(&self) -> Reading {
        Reading {
            sequence_tokens: self.sequence_tokens,
            passes: self.passes,
            question_passes: self.question_passes,
            prompt_weight: self.prompt_weight,
            softened: self.document_kl > 0.0,
        }
    }

    /// The first of `layers` with a part of the expert.
    pub(crate) fn first_layer_of(&self, layers: usize) -> usize {
        (self.first_layer * layers as f32) as usize
    }
}

/// An option's value that cannot work, and what to do.
pub(crate) fn refuse<T>(name: &'static str, value: String, expected: &str) -> Result<T, Error> {
    Err(Error::Option { name, value, expected: expected.into() })
}

pub(crate) fn check_learning_rate(rate: f32, example: &str) -> Result<(), Error> {
    if !(rate > 0.0 && rate < 1.0) {
        let expected = format!("use a rate between 0 and 1, {example} for instance");
        return refuse("learning_rate", rate.to_string(), &expected);
    }
    Ok(())
}

/// That each of the named values is from 0 to `most`.
pub(crate) fn check_shares(shares: &[(&'static str, f32)], most: f32) -> Result<(), Error> {
    match shares.iter().find(|(_, value)| !(0.0..=most).contains(value)) {
        None => Ok(()),
        Some((name, value)) => {
            refuse(name, value.to_string(), &format!("use a number from 0 to {most}"))
        }
    }
}

pub(crate) fn check_clip(clip: f32) -> Result<(), Error> {
    if clip <= 0.0 || !clip.is_finite() {
        return refuse("clip", clip.to_string(), "use a number above 0");
    }
    Ok(())
}

/// What a gradient is multiplied with, so that its global norm is at most `clip`.
pub(crate) fn gradient_scale(clip: f32, norm: f32) -> f32 {
    (clip / norm.max(1e-12)).min(1.0)
}
