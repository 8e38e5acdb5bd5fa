use model::{Config, Family, HeadNorms, Rope, Routing, Scales};
use serde::{Deserialize, Serialize};

use crate::options::refuse;
use crate::whole::{Training, is_full};
use crate::{Error, Optimizer, Shape};

/// A model to train from scratch, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Tokens of a tokenizer that is trained on the documents; 0 for the base's tokenizer.
    pub vocab: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Tokens that a sequence holds; longer texts are cut.
    pub context: usize,
    /// Width of the feed-forward, or of the expert that all tokens share.
    pub width: usize,
    /// Routed experts; 0 for a dense model.
    pub experts: usize,
    /// Experts of each token.
    pub top_k: usize,
    /// Width of a routed expert.
    pub expert_width: usize,
    /// How far an expert's bias moves in a step, towards equal loads.
    pub balance_rate: f32,
    /// Weight of the balance loss by sequence, beside that of the language model: it keeps single
    /// sequences from using the same experts throughout.
    pub sequence_balance: f32,
    /// Weight of the loss of the token after the next, which a block beside the layers learns to
    /// predict; 0 for no such block. Only models with experts have a layout for it.
    #[serde(skip_serializing_if = "is_zero")]
    pub mtp: f32,
    /// What moves the matrices; embedding, output, router and norms always go by AdamW.
    pub optimizer: Optimizer,
    pub learning_rate: f32,
    pub schedule: Shape,
    /// Share of the steps in which the rate rises from 0.
    pub warmup: f32,
    pub weight_decay: f32,
    /// The gradient's global norm is clipped to this for AdamW; Muon's steps have a size of their
    /// own.
    pub clip: f32,
    /// Tokens of one pass, at most: documents are drawn by the seed until they have as many. 0 for all
    /// documents.
    pub tokens: usize,
    /// Times the material is gone through.
    pub passes: usize,
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
            vocab: 0,
            hidden: 384,
            layers: 6,
            heads: 6,
            kv_heads: 2,
            context: 256,
            width: 256,
            experts: 32,
            top_k: 4,
            expert_width: 256,
            balance_rate: 1e-3,
            sequence_balance: 1e-4,
            mtp: 0.0,
            optimizer: Optimizer::Muon,
            learning_rate: 3e-3,
            schedule: Shape::Wsd,
            warmup: 0.02,
            weight_decay: 0.1,
            clip: 1.0,
            tokens: 0,
            passes: 4,
            batch_tokens: 4096,
            micro_batch_tokens: 4096,
            recompute: false,
            state_bits: 32,
            memory_mb: 0,
            checkpoint_seconds: 60,
            seed: 1,
        }
    }
}

/// What is not asked for is no part of a recipe.
fn is_zero(weight: &f32) -> bool {
    *weight == 0.0
}

impl Options {
    /// The model's shape, with a tokenizer of `vocab` tokens.
    pub fn config(&self, vocab: usize, bos: Option<u32>, eos: Vec<u32>) -> Config {
        let routed = self.experts > 0;
        Config {
            family: if routed { Family::Glm4Moe } else { Family::Qwen3 },
            vocab,
            hidden: self.hidden,
            layers: self.layers,
            mtp: self.mtp > 0.0,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.hidden / self.heads,
            intermediate: self.width,
            head_norms: HeadNorms::Each,
            attention_bias: false,
            latent: None,
            norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, dim: self.hidden / self.heads, scaling: None },
            scales: Scales::default(),
            windows: None,
            context: self.context,
            tied_embeddings: true,
            bos,
            eos,
            experts: None,
            routing: routed.then_some(Routing {
                experts: self.experts,
                top_k: self.top_k,
                width: self.expert_width,
                sigmoid: true,
                normalise: true,
                scale: 1.0,
                groups: None,
                dense_layers: 0,
                dense_width: 0,
            }),
        }
    }

    /// # Errors
    /// [`Error::Option`] naming the first value that cannot work.
    pub fn check(&self) -> Result<(), Error> {
        let sizes = [
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("context", self.context),
            ("passes", self.passes),
        ];
        for (name, value) in sizes {
            if !(1..=1 << 16).contains(&value) {
                return refuse(name, value.to_string(), "use 1 to 65536");
            }
        }
        if self.vocab != 0 && !(300..=1 << 20).contains(&self.vocab) {
            let expected = "use 300 to 1048576, or 0 for the base's tokenizer";
            return refuse("vocab", self.vocab.to_string(), expected);
        }
        if !self.hidden.is_multiple_of(2 * self.heads) {
            let expected = format!("each of {} heads must have the same even size", self.heads);
            return refuse("hidden", self.hidden.to_string(), &expected);
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("it must divide the {} heads", self.heads);
            return refuse("kv_heads", self.kv_heads.to_string(), &expected);
        }
        let even = |width: usize| width.is_multiple_of(2) && (2..=1 << 16).contains(&width);
        if !even(self.width) {
            return refuse("width", self.width.to_string(), "use an even number from 2 to 65536");
        }
        if self.experts > 0 {
            if !(1..=self.experts).contains(&self.top_k) || self.experts > 1 << 12 {
                let value = format!("{} of {} experts", self.top_k, self.experts);
                return refuse("top_k", value, "use at least 1, and no more than there are");
            }
            if !even(self.expert_width) || !self.width.is_multiple_of(self.expert_width) {
                let value = format!("{} beside a width of {}", self.expert_width, self.width);
                return refuse("expert_width", value, "it must be even, and divide the width");
            }
        }
        if self.mtp > 0.0 && self.experts == 0 {
            let expected = "no layout for dense models has the block; use experts, or 0";
            return refuse("mtp", self.mtp.to_string(), expected);
        }
        self.training().check("context", self.context)
    }

    /// How the weights are moved.
    pub fn training(&self) -> Training {
        Training {
            optimizer: self.optimizer,
            learning_rate: self.learning_rate,
            schedule: self.schedule,
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            clip: self.clip,
            batch_tokens: self.batch_tokens,
            micro_batch_tokens: self.micro_batch_tokens,
            recompute: self.recompute,
            state_bits: self.state_bits,
            balance_rate: self.balance_rate,
            sequence_balance: self.sequence_balance,
            mtp: self.mtp,
            checkpoint_seconds: self.checkpoint_seconds,
            seed: self.seed,
        }
    }
}
