use model::{Config, ExpertSet, KvFormat, Page};
use serde::{Deserialize, Serialize};

use crate::{Constraint, Error};

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// At most so many tokens are generated; fewer where the context ends first. 0 only reads the
    /// prompt, which with `echo` and `logprobs` scores it.
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// Generation ends before the first of these strings; they are never part of the text.
    pub stop: Vec<String>,
    /// What the text must be, by [`crate::Engine::constraint`].
    pub constraint: Option<Constraint>,
    /// Report this many of the likeliest tokens beside each token.
    pub logprobs: Option<usize>,
    /// Report the prompt's tokens too; with their log-probabilities if `logprobs` is set.
    pub echo: bool,
    /// Report the mean of the prompt's hidden rows.
    pub embed: bool,
    /// The experts this request may use; the router does not see the others.
    pub experts: ExpertSet,
}

impl Request {
    /// Whether log-probabilities of the prompt's own tokens are wanted.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.echo && self.logprobs.is_some()
    }

    /// Whether all of the prompt's hidden rows are needed.
    pub(crate) fn needs_rows(&self) -> bool {
        self.scores_prompt() || self.embed
    }
}

/// How the next token is drawn from the logits.
///
/// Steps, in this order: penalties and biases, temperature, `top_k`, `top_p`, `min_p`.
/// The same seed gives the same tokens, whatever else runs in the batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep the so many likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens until their probabilities add up to this.
    pub top_p: f32,
    /// Keep tokens at least this many times as likely as the likeliest.
    pub min_p: f32,
    /// Subtracted from a token's logit for each time it was generated.
    pub frequency_penalty: f32,
    /// Subtracted from the logit of a token that was generated.
    pub presence_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or generated.
    /// Source: Keskar et al. 2019 (CTRL), equation 2, as Hugging Face applies it.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// # Errors
    /// Names the first parameter outside its range.
    pub fn check(&self, vocab: usize) -> Result<(), Error> {
        let number = |parameter, value: f32, holds: bool, allowed| {
            if value.is_finite() && holds {
                return Ok(());
            }
            Err(Error::Sampling { parameter, value: value.to_string(), allowed })
        };
        let Sampling { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        number("temperature", temperature, (0.0..=100.0).contains(&temperature), "0 to 100")?;
        number("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0, up to 1")?;
        number("min_p", min_p, (0.0..=1.0).contains(&min_p), "0 to 1")?;
        for (parameter, value) in [
            ("frequency_penalty", self.frequency_penalty),
            ("presence_penalty", self.presence_penalty),
        ] {
            number(parameter, value, (-2.0..=2.0).contains(&value), "-2 to 2")?;
        }
        let holds = (0.01..=100.0).contains(&repetition_penalty);
        number("repetition_penalty", repetition_penalty, holds, "0.01 to 100")?;
        for &(token, bias) in &self.logit_bias {
            number("logit_bias", bias, (-100.0..=100.0).contains(&bias), "-100 to 100")?;
            if token as usize >= vocab {
                return Err(Error::Sampling {
                    parameter: "logit_bias",
                    value: format!("on token {token}"),
                    allowed: "a token of the vocabulary",
                });
            }
        }
        Ok(())
    }
}

/// What the engine tells of a request, in this order: perhaps `Waiting`, `Prefill` before each part
/// of the prompt, one `Prompt`, a `Token` each, and one `Done` or `Failed`.
#[derive(Clone, Debug)]
pub enum Event {
    /// There is no room yet. Asks whether the answer is still wanted.
    Waiting,
    /// `done` of `total` prompt tokens have been read.
    Prefill {
        done: usize,
        total: usize,
    },
    Prompt(Prompt),
    Token(Token),
    Done {
        reason: Finish,
        /// Text that was withheld because it could have become a stop string.
        text: String,
        prompt_tokens: usize,
        completion_tokens: usize,
    },
    Failed(String),
}

/// The prompt, when it has been read.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// The tokens with their log-probabilities; empty unless `echo` and `logprobs` were asked for.
    pub tokens: Vec<PromptToken>,
    /// `[experts]`: the gate weight of each expert, mean over layers and prompt tokens.
    pub gates: Vec<f32>,
    /// Tokens whose keys and values were kept from an earlier prompt that began alike.
    pub reused: usize,
    /// `[hidden]`: the mean of the hidden rows behind the final norm; empty unless asked for.
    pub mean_hidden: Vec<f32>,
}

#[derive(Clone, Debug)]
pub struct PromptToken {
    pub id: u32,
    /// Nats; none for the first token, which nothing precedes.
    pub logprob: Option<f32>,
    /// The likeliest tokens at this place, likeliest first; empty for the first token.
    pub top: Vec<(u32, f32)>,
}

#[derive(Clone, Debug)]
pub struct Token {
    pub id: u32,
    /// Text that became certain with this token: empty while a character is incomplete or a stop
    /// string possible.
    pub text: String,
    /// Nats, from the raw logits: before penalties, biases and temperature.
    pub logprob: f32,
    /// The likeliest tokens at this place, likeliest first; as many as `logprobs` asked for.
    pub top: Vec<(u32, f32)>,
    /// `[experts]`: gate weights where this token was predicted, mean over layers.
    pub gates: Vec<f32>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its answer.
    Stop,
    /// This one of the request's stop strings came up.
    StopString(usize),
    /// `max_tokens` or the context's end was reached.
    Length,
}

/// What the receiver of an event wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    /// Cancel the request: no more events come.
    Stop,
}

/// A finished request.
#[derive(Clone, Debug)]
pub struct Completion {
    pub text: String,
    pub tokens: Vec<Token>,
    pub prompt: Prompt,
    pub reason: Finish,
    pub prompt_tokens: usize,
    /// Without the end-of-text token.
    pub completion_tokens: usize,
}

/// Bounds on what runs and waits at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences in one batch.
    pub running: usize,
    /// Requests that wait for a place in the batch; more are refused.
    pub queued: usize,
    /// Memory for keys and values. A request waits until there is room for its prompt and
    /// `max_tokens`; what is left keeps prompts that were read.
    pub kv_bytes: usize,
    /// How they are kept.
    pub kv_format: KvFormat,
    /// Tokens that a sequence drafts at most, from what followed the same tokens in it before. The
    /// model reads them beside the newest one; those that it would have drawn itself are written at
    /// once. 0 drafts none. What is written is the same, bit for bit.
    pub lookup: usize,
    /// As `lookup`, but predicted by the model's own block for the token after the next, where it has
    /// one and `lookup` finds nothing.
    pub mtp: usize,
    pub answers: Answers,
}

/// What becomes of answers when they have been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    Forget,
    /// While nothing else runs or waits they are read as prompts are, so that the next turn of the
    /// conversation begins where they end. Only then: keys and values of tokens that were written
    /// one by one are rounded otherwise than a prompt's, and would show in the next answer.
    ReadAgain,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            running: 64,
            queued: 256,
            kv_bytes: 2 << 30,
            kv_format: KvFormat::F32,
            lookup: 16,
            mtp: 0,
            answers: Answers::Forget,
        }
    }
}

impl Limits {
    /// Tokens for whose keys and values there is room.
    pub fn kv_tokens(&self, config: &Config) -> usize {
        self.kv_bytes / self.page_bytes(config) * Page::TOKENS
    }

    /// Memory for keys and values of a page's tokens: in all layers, and in the block that drafts.
    pub fn page_bytes(&self, config: &Config) -> usize {
        let bytes = Page::bytes(config, self.kv_format);
        bytes + if self.mtp > 0 && config.mtp { bytes / config.layers } else { 0 }
    }
}

/// What runs and waits now, and what was done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub running: usize,
    pub queued: usize,
    /// Memory for keys and values that is set aside for running requests.
    pub running_bytes: usize,
    /// Memory of prompts and answers that were read, for prompts that begin alike.
    pub prefix_bytes: usize,
    /// Prompt tokens that were read, and those that did not need to be.
    pub read_tokens: u64,
    pub reused_tokens: u64,
    pub written_tokens: u64,
    /// Answers that wait to be read again.
    pub unread_answers: usize,
    /// Drafts, their tokens, and those of these that were right.
    pub drafts: u64,
    pub drafted_tokens: u64,
    pub accepted_tokens: u64,
}
