use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kernel::logits::log_sum_exp;
use model::{Decoder, ExpertSet, KvCache, Model, Page};

use crate::constraint::Constraint;
use crate::further::{Further, Wanting};
use crate::ledger::{Account, Ledger};
use crate::logprobs::top;
use crate::lookup::Lookup;
use crate::prefixes::ReadPage;
use crate::sampler::Sampler;
use crate::text::{Released, TextStream};
use crate::{Event, Finish, Flow, Limits, Prompt, PromptToken, Request, Token};

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

    /// The beginning of the prompt that may come from pages read before. Enough is left to read for
    /// the bits to be those of a prompt read alone.
    pub(crate) fn reusable(&self) -> &[u32] {
        let prompt = &self.request.prompt;
        let most = if self.request.needs_rows() { 0 } else { prompt.len() };
        &prompt[..most.saturating_sub(Decoder::LEAST_CUT)]
    }

    /// Whether the receiver still waits for an answer.
    pub(crate) fn is_wanted(&mut self) -> bool {
        self.send(Event::Waiting) == Flow::Continue
    }

    /// A receiver that panics wants no more events; the others in the batch go on.
    pub(crate) fn send(&mut self, event: Event) -> Flow {
        catch_unwind(AssertUnwindSafe(|| (self.sink)(event))).unwrap_or(Flow::Stop)
    }
}

/// What was drawn from one row of logits.
pub(crate) struct Drawn {
    /// The token, or why there is none.
    token: Result<u32, String>,
    logprob: f32,
    top: Vec<(u32, f32)>,
    /// Whether the grammar lets nothing follow the token.
    complete: bool,
}

/// A running request.
pub(crate) struct Sequence {
    pub(crate) pending: Pending,
    pub(crate) cache: KvCache,
    pub(crate) account: Account,
    pub(crate) constraint: Option<Constraint>,
    /// The step in which it last read a part of its prompt, or came.
    pub(crate) read_at: u64,
    /// Prompt tokens already in the cache.
    read: usize,
    /// The prompt's full pages in the cache.
    pages: Vec<ReadPage>,
    /// `[experts]`: gates, summed over the tokens that were read since the last full page.
    page_gates: Vec<f32>,
    /// The prompt, and what was written behind it.
    tokens: Vec<u32>,
    /// What may follow, in the step that is being made.
    draft: Vec<u32>,
    lookup: Lookup,
    further: Option<Further>,
    /// Whether `further` made the draft.
    by_further: bool,
    sampler: Sampler,
    text: TextStream,
    prompt: Prompt,
    ended: bool,
    /// Whether it ended with a whole answer.
    answered: bool,
}

impl Sequence {
    /// With an empty cache, and the pages that its prompt begins with, as far as they were read
    /// before.
    pub(crate) fn new(
        mut pending: Pending,
        model: &Model,
        limits: &Limits,
        account: Account,
        pages: Vec<ReadPage>,
        step: u64,
    ) -> Self {
        let constraint = pending.request.constraint.take();
        let request = &pending.request;
        let experts = model.config().experts.as_ref().map_or(0, |experts| experts.names.len());
        // What writes one token needs no draft of a second.
        let most = if request.max_tokens > 1 { limits.mtp } else { 0 };
        let further = Further::new(model.config(), limits.kv_format, most);
        let mut prompt = Prompt::default();
        if request.scores_prompt() {
            let id = request.prompt[0];
            prompt.tokens.push(PromptToken { id, logprob: None, top: Vec::new() });
        }
        let mut sequence = Sequence {
            cache: KvCache::in_format(model.config(), limits.kv_format),
            account,
            constraint,
            read_at: step,
            read: 0,
            pages: Vec::new(),
            page_gates: vec![0.0; experts],
            tokens: request.prompt.clone(),
            draft: Vec::new(),
            lookup: Lookup::new(limits.lookup),
            further,
            by_further: false,
            sampler: Sampler::new(request.sampling.clone(), &request.prompt),
            text: TextStream::new(request.stop.clone()),
            prompt,
            ended: false,
            answered: false,
            pending,
        };
        sequence.take_pages(pages);
        sequence
    }

    pub(crate) fn experts(&self) -> ExpertSet {
        self.pending.request.experts
    }

    /// The next part of the prompt, about `most` tokens, or none where more must be read at once.
    pub(crate) fn part_to_read(&self, most: usize) -> Vec<u32> {
        let rest = &self.pending.request.prompt[self.read..];
        rest[..cut(rest.len(), most)].to_vec()
    }

    /// The token drawn last and the draft of what follows.
    pub(crate) fn newest(&self) -> Vec<u32> {
        [&self.tokens[self.tokens.len() - 1..], &self.draft].concat()
    }

    /// Drafts what may follow in the next step, of which it has `most` rows, from the text itself; or
    /// asks for another draft, where there is none.
    pub(crate) fn look_up(&mut self, most: usize) -> Option<Wanting<'_>> {
        // The last token that may be drawn needs no row of its own.
        let left = self.pending.request.max_tokens - self.generated();
        let room = most.min(left).saturating_sub(1);
        self.draft = self.lookup.draft(&self.tokens, room);
        let (draft, tokens) = (&mut self.draft, self.tokens.as_slice());
        self.by_further = false;
        let further = self.further.as_mut()?;
        self.by_further = room > 0 && draft.is_empty() && further.is_worth();
        self.by_further.then_some(Wanting { further, tokens, draft, room })
    }

    /// Tokens written.
    fn generated(&self) -> usize {
        self.tokens.len() - self.pending.request.prompt.len()
    }

    /// Prompt tokens that are still to be read.
    pub(crate) fn unread(&self) -> usize {
        self.pending.request.prompt.len() - self.read
    }

    /// Uses what other requests have read of the same prompt meanwhile; how many tokens.
    pub(crate) fn catch_up(&mut self, ledger: &mut Ledger) -> usize {
        let prompt = self.pending.reusable();
        let pages = ledger.reuse(&mut self.account, prompt, self.pages.len());
        let before = self.read;
        self.take_pages(pages);
        self.read - before
    }

    fn take_pages(&mut self, pages: Vec<ReadPage>) {
        self.cache.append(pages.iter().map(|read| Arc::clone(&read.page)));
        self.read += pages.len() * Page::TOKENS;
        self.prompt.reused += pages.len() * Page::TOKENS;
        self.pages.extend(pages);
    }

    pub(crate) fn is_reading(&self) -> bool {
        self.generated() == 0
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
        if !request.scores_prompt() {
            return &[];
        }
        let end = (self.read + count + 1).min(request.prompt.len());
        &request.prompt[self.read + 1..end]
    }

    /// Takes in a part of the prompt: rows `[tokens, hidden]`, gates `[tokens, experts]`, and the
    /// scores of its targets.
    pub(crate) fn take_prompt(
        &mut self,
        rows: &[f32],
        gates: &[f32],
        count: usize,
        scores: Vec<PromptToken>,
        ledger: &mut Ledger,
    ) {
        self.prompt.tokens.extend(scores);
        if let Some(further) = &mut self.further {
            further.take(self.read, rows);
        }
        if self.pending.request.embed {
            let width = rows.len() / count;
            self.prompt.mean_hidden.resize(width, 0.0);
            for row in rows.chunks_exact(width) {
                let sums = self.prompt.mean_hidden.iter_mut().zip(row);
                sums.for_each(|(sum, value)| *sum += value);
            }
        }
        let experts = self.page_gates.len();
        let known = self.pages.len();
        for token in 0..count {
            let row = &gates[token * experts..(token + 1) * experts];
            self.page_gates.iter_mut().zip(row).for_each(|(sum, gate)| *sum += gate);
            self.read += 1;
            if self.read.is_multiple_of(Page::TOKENS) {
                let page = Arc::clone(&self.cache.pages()[self.pages.len()]);
                let gates = self.page_gates.as_slice().into();
                self.pages.push(ReadPage { page, gates });
                self.page_gates.fill(0.0);
            }
        }
        let new = self.pages.len() - known;
        ledger.keep(&mut self.account, &self.pending.request.prompt, &mut self.pages, new);
        for index in known..self.pages.len() {
            self.cache.share(index, Arc::clone(&self.pages[index].page));
        }
        if self.read == self.pending.request.prompt.len() {
            self.end_prompt();
        }
    }

    fn end_prompt(&mut self) {
        let mut prompt = std::mem::take(&mut self.prompt);
        // Page by page, so that the sum is the same where pages were read by another request.
        let mut sums = vec![0.0; self.page_gates.len()];
        let pages = self.pages.iter().map(|read| &*read.gates);
        for gates in pages.chain([self.page_gates.as_slice()]) {
            sums.iter_mut().zip(gates).for_each(|(sum, gate)| *sum += gate);
        }
        self.cache.attend_one_by_one();
        prompt.mean_hidden.iter_mut().for_each(|sum| *sum /= self.read as f32);
        prompt.gates = sums.iter().map(|sum| sum / self.read as f32).collect();
        self.send(Event::Prompt(prompt));
        if self.pending.request.max_tokens == 0 {
            self.finish(Finish::Length);
        }
    }

    /// Whether the rows just computed predict tokens to be drawn.
    pub(crate) fn draws(&self) -> bool {
        !self.ended && self.read == self.pending.request.prompt.len()
    }

    /// Draws from the logits `[rows, vocab]` behind the newest token and behind each of its draft, as
    /// long as the draft is what was drawn.
    pub(crate) fn draw(&mut self, logits: &[f32], model: &Model) -> Vec<Drawn> {
        let config = model.config();
        let mut drawn = Vec::new();
        for (index, logits) in logits.chunks_exact(config.vocab).enumerate() {
            let next = self.draw_one(logits, &config.eos);
            let goes_on = !next.complete && next.token.as_ref().ok() == self.draft.get(index);
            drawn.push(next);
            if !goes_on {
                break;
            }
        }
        drawn
    }

    fn draw_one(&mut self, logits: &[f32], eos: &[u32]) -> Drawn {
        let drawn = self.draw_allowed(logits).and_then(|token| {
            let constraint = self.constraint.as_mut().filter(|_| !eos.contains(&token));
            let complete = constraint.map_or(Ok(false), |constraint| constraint.take(token));
            Ok((token, complete.map_err(|problem| format!("the grammar: {problem}"))?))
        });
        let normaliser = log_sum_exp(logits);
        let (token, complete) = match drawn {
            Ok((token, complete)) => (Ok(token), complete),
            Err(problem) => (Err(problem), false),
        };
        let logprob = token.as_ref().map_or(f32::NAN, |&token| logits[token as usize] - normaliser);
        Drawn { token, logprob, top: top(logits, normaliser, self.alternatives()), complete }
    }

    fn draw_allowed(&mut self, logits: &[f32]) -> Result<u32, String> {
        let problem = "the model's logits are not numbers";
        let Some(constraint) = &mut self.constraint else {
            return self.sampler.draw(logits).ok_or_else(|| problem.to_owned());
        };
        let mut allowed = logits.to_vec();
        constraint.apply(&mut allowed).map_err(|problem| format!("the grammar: {problem}"))?;
        self.sampler.draw(&allowed).ok_or_else(|| problem.to_owned())
    }

    /// Sends the drawn tokens, each with its hidden row and its row of gates `[rows, experts]`, and the
    /// end if it is among them. Returns how many tokens were drafted, and how many of them were right.
    pub(crate) fn take_tokens(
        &mut self,
        drawn: Vec<Drawn>,
        (rows, gates): (&[f32], &[f32]),
        model: &Model,
    ) -> (usize, usize) {
        let (drafted, right) = (self.draft.len(), drawn.len() - 1);
        let (newest, written) = (self.tokens.len() - 1, self.generated() > 0);
        if let Some(further) = &mut self.further {
            // The row of a prompt's last token was taken with the others.
            if written {
                further.take(newest, &rows[..drawn.len() * model.config().hidden]);
            }
            if self.by_further {
                further.learn(drafted, right);
            }
        }
        if !self.by_further {
            self.lookup.learn(drafted, right);
        }
        self.draft.clear();
        // What was drawn last is not in the cache yet.
        self.cache.truncate(self.cache.len() - (drafted - right));
        let experts = self.page_gates.len();
        for (index, drawn) in drawn.into_iter().enumerate() {
            if !self.ended {
                self.take_token(drawn, &gates[index * experts..(index + 1) * experts], model);
            }
        }
        (drafted, right)
    }

    fn take_token(&mut self, drawn: Drawn, gates: &[f32], model: &Model) {
        let Drawn { token, logprob, top, complete } = drawn;
        let id = match token {
            Ok(id) => id,
            Err(problem) => return self.fail(&problem),
        };
        if model.config().eos.contains(&id) {
            return self.finish(Finish::Stop);
        }
        self.tokens.push(id);
        let special = model.tokenizer.is_special(id);
        let bytes = if special { Vec::new() } else { model.tokenizer.token_bytes(id) };
        let (text, stopped) = match self.text.push(&bytes) {
            Released::Text(text) => (text, None),
            Released::Stopped(text, index) => (text, Some(index)),
        };
        self.send(Event::Token(Token { id, text, logprob, top, gates: gates.to_vec() }));
        if let Some(index) = stopped {
            // What follows the stop string is no text of the answer.
            self.text = TextStream::new(Vec::new());
            self.finish(Finish::StopString(index));
        } else if complete {
            self.finish(Finish::Stop);
        } else if self.generated() >= self.pending.request.max_tokens {
            self.finish(Finish::Length);
        }
    }

    /// What has ended, as a prompt that nobody waits for: its full pages are still to be read where
    /// an answer stands in them. The account, where there are no such pages.
    pub(crate) fn read_again(
        mut self,
        model: &Model,
        limits: &Limits,
        ledger: &mut Ledger,
        step: u64,
    ) -> Result<Sequence, Account> {
        let (whole, known) = (self.tokens.len() / Page::TOKENS, self.pages.len());
        if !self.answered || whole <= known {
            return Err(self.account);
        }
        ledger.shrink(&mut self.account, whole - known);
        self.tokens.truncate(whole * Page::TOKENS);
        let experts = self.experts();
        let request = Request { prompt: self.tokens, experts, ..Request::default() };
        let pending = Pending { request, sink: Box::new(|_| Flow::Continue) };
        Ok(Sequence::new(pending, model, limits, self.account, self.pages, step))
    }

    /// Sends the last event, unless the receiver wants no more.
    fn finish(&mut self, reason: Finish) {
        if self.ended {
            return;
        }
        let stream = std::mem::replace(&mut self.text, TextStream::new(Vec::new()));
        let (text, reason) = match stream.finish() {
            Released::Text(text) => (text, reason),
            Released::Stopped(text, index) => (text, Finish::StopString(index)),
        };
        let prompt_tokens = self.pending.request.prompt.len();
        let completion_tokens = self.generated();
        self.send(Event::Done { reason, text, prompt_tokens, completion_tokens });
        self.ended = true;
        self.answered = true;
    }

    pub(crate) fn fail(&mut self, problem: &str) {
        if !self.ended {
            self.send(Event::Failed(problem.to_owned()));
            self.ended = true;
        }
    }
}

/// How many of the `rest` tokens of a prompt to read when about `most` may be: whole pages, or all
/// that is left. Neither this part nor the next one is shorter than [`Decoder::LEAST_CUT`], so how a
/// prompt is cut does not change what comes out.
fn cut(rest: usize, most: usize) -> usize {
    let pages = most / Page::TOKENS * Page::TOKENS;
    match rest {
        _ if rest <= most || most == 0 => rest.min(most),
        _ if rest - pages >= Decoder::LEAST_CUT => pages,
        _ if pages == 0 => 0,
        // What is left is too short to stand alone.
        _ if pages > Page::TOKENS => pages - Page::TOKENS,
        _ => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_pages_and_never_too_short() {
        for (rest, most, expected) in [
            (10, 512, 10),
            (512, 512, 512),
            (600, 512, 512),
            (514, 512, 480),
            (517, 512, 512),
            (1000, 130, 128),
            (34, 33, 34),
            (40, 20, 0),
            (3, 2, 0),
            (600, 0, 0),
        ] {
            assert_eq!(cut(rest, most), expected, "{rest} with room for {most}");
        }
    }
}
