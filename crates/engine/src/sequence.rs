use std::panic::{AssertUnwindSafe, catch_unwind};

use model::{ExpertSet, KvCache, Model};

use crate::logprobs::{log_sum_exp, top};
use crate::sampler::Sampler;
use crate::text::{Released, TextStream};
use crate::{Event, Finish, Flow, Prompt, PromptToken, Request, Token};

/// Prompt tokens of one sequence in one step. Always the same cuts, so that a prompt is computed
/// in the same parts whatever else runs.
pub(crate) const PREFILL: usize = 256;

pub(crate) type Sink = Box<dyn FnMut(Event) -> Flow + Send>;

/// A request with its receiver, before and while it runs.
pub(crate) struct Pending {
    pub(crate) request: Request,
    pub(crate) sink: Sink,
}

impl Pending {
    /// Tokens for which keys and values may be kept.
    pub(crate) fn kv_tokens(&self) -> usize {
        self.request.prompt.len() + self.request.max_tokens
    }

    /// A receiver that panics wants no more events; the others in the batch go on.
    pub(crate) fn send(&mut self, event: Event) -> Flow {
        catch_unwind(AssertUnwindSafe(|| (self.sink)(event))).unwrap_or(Flow::Stop)
    }
}

/// What follows the token drawn from one row of logits.
pub(crate) struct Drawn {
    pub(crate) token: Option<u32>,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(u32, f32)>,
}

/// A running request.
pub(crate) struct Sequence {
    pub(crate) pending: Pending,
    pub(crate) cache: KvCache,
    /// Prompt tokens already in the cache.
    read: usize,
    /// The last token drawn, not yet in the cache.
    next: Option<u32>,
    generated: usize,
    sampler: Sampler,
    text: TextStream,
    prompt: Prompt,
    ended: bool,
}

impl Sequence {
    pub(crate) fn new(pending: Pending, model: &Model) -> Self {
        let request = &pending.request;
        let experts = model.config().experts.as_ref().map_or(0, |experts| experts.names.len());
        let mut prompt = Prompt { tokens: Vec::new(), gates: vec![0.0; experts] };
        if request.echo && request.logprobs.is_some() {
            let id = request.prompt[0];
            prompt.tokens.push(PromptToken { id, logprob: None, top: Vec::new() });
        }
        Sequence {
            cache: KvCache::new(model.config()),
            read: 0,
            next: None,
            generated: 0,
            sampler: Sampler::new(request.sampling.clone(), &request.prompt),
            text: TextStream::new(request.stop.clone()),
            prompt,
            ended: false,
            pending,
        }
    }

    pub(crate) fn experts(&self) -> ExpertSet {
        self.pending.request.experts
    }

    /// The tokens of the next step: the token drawn last, or the next part of the prompt.
    pub(crate) fn step_tokens(&self) -> Vec<u32> {
        match self.next {
            Some(token) => vec![token],
            None => {
                let prompt = &self.pending.request.prompt;
                prompt[self.read..].iter().take(PREFILL).copied().collect()
            }
        }
    }

    pub(crate) fn is_reading(&self) -> bool {
        self.next.is_none()
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// How many of the likeliest tokens to report at each place.
    pub(crate) fn alternatives(&self) -> usize {
        self.pending.request.logprobs.unwrap_or(0)
    }

    fn send(&mut self, event: Event) {
        self.ended |= self.pending.send(event) == Flow::Stop;
    }

    pub(crate) fn announce_prefill(&mut self) {
        let total = self.pending.request.prompt.len();
        self.send(Event::Prefill { done: self.read, total });
    }

    /// For the next `count` prompt tokens, now read: the tokens that their rows predict, where
    /// log-probabilities of the prompt are wanted. The last row of the prompt predicts none.
    pub(crate) fn prompt_targets(&self, count: usize) -> &[u32] {
        let request = &self.pending.request;
        if !request.echo || request.logprobs.is_none() {
            return &[];
        }
        let end = (self.read + count + 1).min(request.prompt.len());
        &request.prompt[self.read + 1..end]
    }

    /// Takes in a part of the prompt: gates `[tokens, experts]`, and the scores of its targets.
    pub(crate) fn take_prompt(&mut self, count: usize, gates: &[f32], scores: Vec<PromptToken>) {
        self.prompt.tokens.extend(scores);
        for row in gates.chunks_exact(self.prompt.gates.len().max(1)) {
            for (sum, gate) in self.prompt.gates.iter_mut().zip(row) {
                *sum += gate;
            }
        }
        self.read += count;
        if self.read < self.pending.request.prompt.len() {
            return;
        }
        let mut prompt = std::mem::take(&mut self.prompt);
        prompt.gates.iter_mut().for_each(|sum| *sum /= self.read as f32);
        self.send(Event::Prompt(prompt));
        if self.pending.request.max_tokens == 0 {
            self.finish(Finish::Length);
        }
    }

    /// Whether the row just computed predicts a token to be drawn.
    pub(crate) fn draws(&self) -> bool {
        !self.ended && self.read == self.pending.request.prompt.len()
    }

    /// Draws the next token from its logits `[vocab]`.
    pub(crate) fn draw(&mut self, logits: &[f32]) -> Drawn {
        let token = self.sampler.draw(logits);
        let normaliser = log_sum_exp(logits);
        let logprob = token.map_or(f32::NAN, |token| logits[token as usize] - normaliser);
        let count = self.pending.request.logprobs.unwrap_or(0);
        Drawn { token, logprob, top: top(logits, normaliser, count) }
    }

    /// Sends the drawn token, and the end if it is the last.
    pub(crate) fn take_token(&mut self, drawn: Drawn, gates: &[f32], model: &Model) {
        let Drawn { token, logprob, top } = drawn;
        let Some(id) = token else {
            return self.fail("the model's logits are not numbers");
        };
        if model.config().eos.contains(&id) {
            return self.finish(Finish::Stop);
        }
        self.next = Some(id);
        self.generated += 1;
        let special = model.tokenizer.is_special(id);
        let bytes = if special { Vec::new() } else { model.tokenizer.token_bytes(id) };
        let (text, stopped) = match self.text.push(&bytes) {
            Released::Text(text) => (text, false),
            Released::Stopped(text) => (text, true),
        };
        self.send(Event::Token(Token { id, text, logprob, top, gates: gates.to_vec() }));
        if stopped {
            // What follows the stop string is no text of the answer.
            self.text = TextStream::new(Vec::new());
            self.finish(Finish::Stop);
        } else if self.generated >= self.pending.request.max_tokens {
            self.finish(Finish::Length);
        }
    }

    /// Sends the last event, unless the receiver wants no more.
    fn finish(&mut self, reason: Finish) {
        if self.ended {
            return;
        }
        let stream = std::mem::replace(&mut self.text, TextStream::new(Vec::new()));
        let (text, reason) = match stream.finish() {
            Released::Text(text) => (text, reason),
            Released::Stopped(text) => (text, Finish::Stop),
        };
        let prompt_tokens = self.pending.request.prompt.len();
        let completion_tokens = self.generated;
        self.send(Event::Done { reason, text, prompt_tokens, completion_tokens });
        self.ended = true;
    }

    pub(crate) fn fail(&mut self, problem: &str) {
        if !self.ended {
            self.send(Event::Failed(problem.to_owned()));
            self.ended = true;
        }
    }
}
