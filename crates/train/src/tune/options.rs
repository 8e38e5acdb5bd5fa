use serde::{Deserialize, Serialize};

use crate::options::{check_shares, refuse};
use crate::whole::{Training, is_full};
use crate::{Error, Optimizer, Reading, Shape};

/// What of a model is tuned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// All weights.
    Full,
    /// Products of two narrow matrices, added to some of the weights.
    ///
    /// **Source**: Hu et al. 2021, arXiv 2106.09685.
    Lora,
    /// Those of the model's own experts that the material uses most.
    ///
    /// **Source**: Wang et al. 2024, arXiv 2407.01906.
    Experts,
}

/// By what experts are judged to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// Their share of the gates (ESFT-Gate).
    Gate,
    /// Their share of the tokens' choices (ESFT-Token).
    Token,
}

/// A base to tune, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    pub method: Method,
    /// Of `lora`: rows of the narrow matrices.
    pub rank: usize,
    /// Of `lora`: the product is multiplied by this, divided by the rank.
    pub alpha: f32,
    /// Of `lora`: which matrices, by the last part of their names (`q_proj`); empty for all of
    /// attention and feed-forward. Routed experts have none.
    pub targets: Vec<String>,
    /// Of `experts`: in each layer the fewest experts are tuned whose scores add up to this.
    pub share: f32,
    /// Of `experts`.
    pub score: Score,
    /// Of `experts`: tokens of the material that the scores are counted on.
    pub probe_tokens: usize,
    /// What moves the matrices; embedding, output, router and norms always go by AdamW.
    pub optimizer: Optimizer,
    /// The method's own if none is given: 2e-5 (`full`), 5e-4 (`lora`), 1e-4 (`experts`).
    pub learning_rate: Option<f32>,
    pub schedule: Shape,
    /// Share of the steps in which the rate rises from 0.
    pub warmup: f32,
    pub weight_decay: f32,
    /// The gradient's global norm is clipped to this for AdamW.
    pub clip: f32,
    /// Times documents and statements are gone through.
    pub passes: usize,
    /// Times questions are.
    pub question_passes: usize,
    /// The weight of a question's tokens in the loss; an answer's have 1.
    pub prompt_weight: f32,
    /// The longest sequence; longer documents are cut.
    pub sequence_tokens: usize,
    /// Tokens of one step.
    pub batch_tokens: usize,
    /// Tokens that are computed at once; a step of more adds up gradients.
    pub micro_batch_tokens: usize,
    /// Keeps each layer's input alone and computes the layer again on the way back: less memory, a
    /// quarter to a third more time, the same weights.
    pub recompute: bool,
    /// Bits of a value of the optimiser's running means: 32, or 8 of the matrices that AdamW moves.
    #[serde(skip_serializing_if = "is_full")]
    pub state_bits: u32,
    /// Most memory that training may take, MiB; 0 for what the machine has free.
    pub memory_mb: u64,
    /// Seconds between checkpoints.
    pub checkpoint_seconds: u64,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            method: Method::Lora,
            rank: 16,
            alpha: 32.0,
            targets: Vec::new(),
            share: 0.2,
            score: Score::Gate,
            probe_tokens: 16_384,
            optimizer: Optimizer::AdamW,
            learning_rate: None,
            schedule: Shape::Cosine,
            warmup: 0.05,
            weight_decay: 0.0,
            clip: 1.0,
            passes: 2,
            question_passes: 3,
            prompt_weight: 0.0,
            sequence_tokens: 256,
            batch_tokens: 1024,
            micro_batch_tokens: 1024,
            recompute: false,
            state_bits: 32,
            memory_mb: 0,
            checkpoint_seconds: 60,
            seed: 1,
        }
    }
}

impl Options {
    /// # Errors
    /// [`Error::Option`] naming the first value that cannot work.
    pub fn check(&self) -> Result<(), Error> {
        if !(1..=1 << 12).contains(&self.rank) {
            return refuse("rank", self.rank.to_string(), "use 1 to 4096, 16 for instance");
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return refuse("alpha", self.alpha.to_string(), "use a number above 0");
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            let expected = "use a share of the scores above 0, at most 1";
            return refuse("share", self.share.to_string(), expected);
        }
        let counts = [
            ("probe_tokens", self.probe_tokens),
            ("passes", self.passes),
            ("question_passes", self.question_passes),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return refuse(name, "0".into(), "use at least 1");
        }
        check_shares(&[("prompt_weight", self.prompt_weight)], 100.0)?;
        self.training().check("sequence_tokens", self.sequence_tokens)
    }

    /// How the weights are moved. The base's experts are balanced already, or they would not be as
    /// they are.
    pub fn training(&self) -> Training {
        let own = match self.method {
            Method::Full => 2e-5,
            Method::Lora => 5e-4,
            Method::Experts => 1e-4,
        };
        Training {
            optimizer: self.optimizer,
            learning_rate: self.learning_rate.unwrap_or(own),
            schedule: self.schedule,
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            clip: self.clip,
            batch_tokens: self.batch_tokens,
            micro_batch_tokens: self.micro_batch_tokens,
            recompute: self.recompute,
            state_bits: self.state_bits,
            balance_rate: 0.0,
            sequence_balance: 0.0,
            mtp: 0.0,
            checkpoint_seconds: self.checkpoint_seconds,
            seed: self.seed,
        }
    }

    /// How material is read.
    pub fn reading(&self) -> Reading {
        Reading {
            sequence_tokens: self.sequence_tokens,
            passes: self.passes,
            question_passes: self.question_passes,
            prompt_weight: self.prompt_weight,
            softened: false,
        }
    }
}
