use crate::options::{check_clip, check_learning_rate, check_shares, refuse};
use crate::{Error, Optimizer, Shape};

/// How weights are moved, whichever they are: resolved from `[scratch]` or `[tune]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// What moves the matrices; embedding, output, router and norms always go by AdamW.
    pub optimizer: Optimizer,
    pub learning_rate: f32,
    pub schedule: Shape,
    /// Share of the steps in which the rate rises from 0.
    pub warmup: f32,
    pub weight_decay: f32,
    /// The gradient's global norm is clipped to this for AdamW.
    pub clip: f32,
    /// Tokens of one step, at most.
    pub batch_tokens: usize,
    /// Tokens that are computed at once, at most.
    pub micro_batch_tokens: usize,
    /// Whether layers keep their inputs alone, and are computed again on the way back.
    pub recompute: bool,
    /// How far an expert's bias moves in a step, towards equal loads.
    pub balance_rate: f32,
    /// Weight of the balance loss by sequence.
    pub sequence_balance: f32,
    /// Weight of the loss of the token after the next, in models with a block for it.
    pub mtp: f32,
    /// Bits of a value of the running means: 32, or 8 of matrices that AdamW moves.
    pub state_bits: u32,
    /// Seconds between checkpoints.
    pub checkpoint_seconds: u64,
    pub seed: u64,
}

/// What is usual is no part of a recipe.
pub(crate) fn is_full(state_bits: &u32) -> bool {
    *state_bits == 32
}

impl Training {
    /// For sequences of at most `longest` tokens, as the option `name` says.
    ///
    /// # Errors
    /// [`Error::Option`] naming the first value that cannot work.
    pub(crate) fn check(&self, name: &str, longest: usize) -> Result<(), Error> {
        if longest < 2 || self.micro_batch_tokens < longest {
            let value = format!("{} with {name} {longest}", self.micro_batch_tokens);
            let expected = "it must hold a sequence of at least 2 tokens";
            return refuse("micro_batch_tokens", value, expected);
        }
        if self.batch_tokens < longest {
            let value = format!("{} with {name} {longest}", self.batch_tokens);
            return refuse("batch_tokens", value, "a step must hold a sequence");
        }
        if ![8, 32].contains(&self.state_bits) {
            return refuse("state_bits", self.state_bits.to_string(), "use 32, or 8");
        }
        check_learning_rate(self.learning_rate, "3e-3")?;
        let shares = [
            ("warmup", self.warmup),
            ("weight_decay", self.weight_decay),
            ("balance_rate", self.balance_rate),
            ("sequence_balance", self.sequence_balance),
            ("mtp", self.mtp),
        ];
        check_shares(&shares, 1.0)?;
        check_clip(self.clip)
    }
}
