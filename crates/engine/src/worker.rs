use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kernel::Pool;
use kernel::logits::log_sum_exp;
use model::{Decoder, Hidden, Input, Model, Page};

use crate::further::{self, Wanting};
use crate::ledger::Ledger;
use crate::logprobs::{for_each_row, on_pool, top};
use crate::sequence::{Pending, Sequence};
use crate::{Answers, Event, Limits, Load, PromptToken};

/// Prompt tokens of a step while others wait for their next token: what they wait for it.
const READ_BESIDE: usize = 128;
/// Prompt tokens of a step while all read.
const READ_ALONE: usize = 512;
/// Tokens of an answer that are read again in a step: what a request waits that comes meanwhile.
const READ_AGAIN: usize = Page::TOKENS;
/// Answers that wait to be read again, at most.
const UNREAD_ANSWERS: usize = 64;
/// Rows of a step up to which those that write may draft what follows: so many take little longer
/// than one, since the weights are read once for all.
const DRAFT_ROWS: usize = 16;

/// What the handle and the worker thread share.
pub(crate) struct Shared {
    pub(crate) model: Arc<Model>,
    pub(crate) limits: Limits,
    pub(crate) state: Mutex<State>,
    pub(crate) wake: Condvar,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) queue: VecDeque<Pending>,
    pub(crate) load: Load,
    pub(crate) closing: bool,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if it did, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until the engine is closed: steps all sequences, admits new ones between steps.
pub(crate) fn work(shared: &Shared, pool: &Pool) {
    let page_bytes = shared.limits.page_bytes(shared.model.config());
    let mut batch = Batch {
        running: Vec::new(),
        again: VecDeque::new(),
        ledger: Ledger::new(shared.limits.kv_bytes / page_bytes),
        page_bytes,
        steps: 0,
        load: Load::default(),
    };
    while batch.admit(shared) {
        guard(shared, &mut batch, |batch| step(shared, pool, batch));
    }
    batch.running.iter_mut().for_each(|sequence| sequence.fail("the engine was stopped"));
    let queue = std::mem::take(&mut shared.lock().queue);
    for mut pending in queue {
        pending.send(Event::Failed("the engine was stopped".to_owned()));
    }
}

/// The sequences that run, and the memory they run in.
struct Batch {
    running: Vec<Sequence>,
    /// Answers that are read while nothing runs, for the next turns of their conversations.
    again: VecDeque<Sequence>,
    ledger: Ledger,
    page_bytes: usize,
    /// Steps done.
    steps: u64,
    load: Load,
}

/// A step that panics fails its requests, but neither hangs them nor ends the engine.
fn guard(shared: &Shared, batch: &mut Batch, step: impl FnOnce(&mut Batch)) {
    if catch_unwind(AssertUnwindSafe(|| step(batch))).is_err() {
        tracing::error!("a step of the engine panicked; its requests fail");
        // The caches may be half-written, so nothing of this batch can go on.
        batch.running.iter_mut().for_each(|sequence| sequence.fail("internal error in the engine"));
        while batch.forget_answer() {}
        batch.let_go(shared);
    }
}

impl Batch {
    /// Takes in the requests that find room, before the next step; waits while there is nothing to
    /// do. False when the engine closes.
    fn admit(&mut self, shared: &Shared) -> bool {
        let mut state = shared.lock();
        loop {
            if state.closing {
                return false;
            }
            self.admit_queued(&mut state, shared);
            self.report(&mut state);
            if !(self.running.is_empty() && self.again.is_empty()) {
                return true;
            }
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// In order of arrival: a large request is not overtaken for ever by small ones.
    fn admit_queued(&mut self, state: &mut State, shared: &Shared) {
        while let Some(first) = state.queue.front_mut() {
            let (experts, tokens) = (first.request.experts, first.kv_tokens());
            let room = match self.running.len() < shared.limits.running {
                true => self.ledger.open(experts, first.reusable(), tokens),
                false => None,
            };
            if room.is_none() && first.is_wanted() {
                if self.running.len() < shared.limits.running && self.forget_answer() {
                    continue;
                }
                return;
            }
            let pending = state.queue.pop_front().expect("the queue has a front");
            let Some((account, pages)) = room else { continue };
            self.load.reused_tokens += (pages.len() * Page::TOKENS) as u64;
            let (model, limits) = (&shared.model, &shared.limits);
            let sequence = Sequence::new(pending, model, limits, account, pages, self.steps);
            self.running.push(sequence);
        }
    }

    fn report(&mut self, state: &mut State) {
        let unread: usize = self.again.iter().map(|sequence| sequence.account.own()).sum();
        self.load.running = self.running.len();
        self.load.queued = state.queue.len();
        self.load.unread_answers = self.again.len();
        self.load.running_bytes = (self.ledger.own() - unread) * self.page_bytes;
        self.load.prefix_bytes = (self.ledger.kept() + unread) * self.page_bytes;
        state.load = self.load;
    }

    /// Removes the sequences that have ended; what they answered may be read again.
    fn let_go(&mut self, shared: &Shared) {
        let (model, limits) = (&shared.model, &shared.limits);
        let ended: Vec<Sequence> = self.running.extract_if(.., |s| s.ended()).collect();
        for sequence in ended {
            let again = match limits.answers {
                Answers::Forget => Err(sequence.account),
                Answers::ReadAgain => {
                    sequence.read_again(model, limits, &mut self.ledger, self.steps)
                }
            };
            match again {
                Ok(sequence) => self.again.push_back(sequence),
                Err(account) => self.ledger.close(account),
            }
        }
        while self.again.len() > UNREAD_ANSWERS || self.again.front().is_some_and(Sequence::ended) {
            self.forget_answer();
        }
    }

    /// Lets go the answer that was to be read next. False where there is none.
    fn forget_answer(&mut self) -> bool {
        let Some(sequence) = self.again.pop_front() else { return false };
        self.ledger.close(sequence.account);
        true
    }
}

/// One step of the batch: the next token of every sequence that writes, and parts of the prompts of
/// those that read. Where there are none, a page of an answer.
fn step(shared: &Shared, pool: &Pool, batch: &mut Batch) {
    let model = &*shared.model;
    batch.steps += 1;
    for sequence in batch.running.iter_mut().filter(|sequence| sequence.is_reading()) {
        sequence.announce_prefill();
    }
    batch.let_go(shared);
    draft(model, pool, &mut batch.running);
    let Batch { running, again, ledger, steps, load, .. } = &mut *batch;
    let mut chosen = match again.front_mut().filter(|_| running.is_empty()) {
        Some(answer) => {
            answer.catch_up(ledger);
            let tokens = answer.part_to_read(READ_AGAIN);
            vec![(answer, tokens)]
        }
        None => choose(running, ledger, *steps, load),
    };
    if chosen.is_empty() {
        return;
    }
    let mut constraints = Vec::new();
    let mut inputs: Vec<Input> = chosen
        .iter_mut()
        .map(|(sequence, tokens)| {
            let experts = sequence.experts();
            let Sequence { cache, constraint, .. } = &mut **sequence;
            constraints.extend(constraint.as_mut().filter(|constraint| !constraint.is_ready()));
            Input { tokens, experts, cache }
        })
        .collect();
    let hidden = std::thread::scope(|scope| {
        if !constraints.is_empty() {
            scope.spawn(|| constraints.iter_mut().for_each(|constraint| constraint.prepare()));
        }
        model.decoder.forward(pool, &mut inputs)
    });
    drop(inputs);
    let predicting = read_prompts(model, pool, chosen, &hidden, ledger);
    generate(model, pool, predicting, load);
    batch.let_go(shared);
}

/// Gives all that write a draft, where they find one.
fn draft(model: &Model, pool: &Pool, running: &mut [Sequence]) {
    let writing: Vec<&mut Sequence> =
        running.iter_mut().filter(|sequence| !sequence.is_reading()).collect();
    let each = (DRAFT_ROWS / writing.len().max(1)).max(1);
    let wanting = writing.into_iter().filter_map(|sequence| sequence.look_up(each));
    let wanting: Vec<Wanting> = wanting.collect();
    if !wanting.is_empty() {
        further::draft(&model.decoder, pool, wanting);
    }
}

/// The sequences of this step with their tokens: all that write, and of those that read as many as
/// there is room for.
fn choose<'a>(
    running: &'a mut [Sequence],
    ledger: &mut Ledger,
    step: u64,
    load: &mut Load,
) -> Vec<(&'a mut Sequence, Vec<u32>)> {
    let (mut readers, writers): (Vec<&mut Sequence>, Vec<&mut Sequence>) =
        running.iter_mut().partition(|sequence| sequence.is_reading());
    let mut room = if writers.is_empty() { READ_ALONE } else { READ_BESIDE };
    let mut chosen: Vec<_> = writers
        .into_iter()
        .map(|sequence| {
            let tokens = sequence.newest();
            // Others wait for a draft's rows as they do for a prompt's.
            room -= tokens.len() - 1;
            (sequence, tokens)
        })
        .collect();
    // Short prompts first, but the longer a prompt waits the shorter it counts.
    readers.sort_by_key(|sequence| {
        let waited = (step - sequence.read_at) as usize * READ_BESIDE;
        sequence.unread().saturating_sub(waited)
    });
    for sequence in readers {
        if room < Decoder::LEAST_CUT {
            break;
        }
        load.reused_tokens += sequence.catch_up(ledger) as u64;
        let tokens = sequence.part_to_read(room);
        if !tokens.is_empty() {
            room = room.saturating_sub(tokens.len());
            load.read_tokens += tokens.len() as u64;
            sequence.read_at = step;
            chosen.push((sequence, tokens));
        }
    }
    chosen
}

/// A sequence whose next tokens are to be drawn: from its hidden rows `[rows, hidden]`, with the
/// gates `[rows, experts]` of those rows.
struct Predicting<'a> {
    sequence: &'a mut Sequence,
    rows: &'a [f32],
    gates: &'a [f32],
}

/// Books the prompt tokens that were read; gives the sequences that draw a token now.
fn read_prompts<'a>(
    model: &Model,
    pool: &Pool,
    batch: Vec<(&'a mut Sequence, Vec<u32>)>,
    hidden: &'a Hidden,
    ledger: &mut Ledger,
) -> Vec<Predicting<'a>> {
    let width = model.config().hidden;
    let experts = model.config().experts.as_ref().map_or(0, |experts| experts.names.len());
    let mut predicting = Vec::with_capacity(batch.len());
    let mut first = 0;
    for (sequence, tokens) in batch {
        let end = first + tokens.len();
        let rows = &hidden.rows[first * width..end * width];
        let gates = &hidden.gates[first * experts..end * experts];
        first = end;
        let mut draws = tokens.len();
        if sequence.is_reading() {
            let scores = score_prompt(model, pool, sequence, tokens.len(), rows);
            sequence.take_prompt(rows, gates, tokens.len(), scores, ledger);
            draws = 1;
        }
        if sequence.draws() {
            let rows = &rows[rows.len() - draws * width..];
            let gates = &gates[gates.len() - draws * experts..];
            predicting.push(Predicting { sequence, rows, gates });
        }
    }
    predicting
}

fn score_prompt(
    model: &Model,
    pool: &Pool,
    sequence: &Sequence,
    count: usize,
    rows: &[f32],
) -> Vec<PromptToken> {
    let targets = sequence.prompt_targets(count);
    let alternatives = sequence.alternatives();
    let rows = &rows[..targets.len() * model.config().hidden];
    for_each_row(&model.decoder, pool, rows, |row, logits| {
        let (id, normaliser) = (targets[row], log_sum_exp(logits));
        let logprob = Some(logits[id as usize] - normaliser);
        PromptToken { id, logprob, top: top(logits, normaliser, alternatives) }
    })
}

fn generate(model: &Model, pool: &Pool, predicting: Vec<Predicting>, load: &mut Load) {
    if predicting.is_empty() {
        return;
    }
    let (width, vocab) = (model.config().hidden, model.config().vocab);
    let rows: Vec<&[f32]> = predicting.iter().map(|predicting| predicting.rows).collect();
    let logits = model.decoder.logits(pool, &rows.concat());
    let mut rest = &*logits;
    let slots: Vec<Mutex<(Predicting, &[f32])>> = predicting
        .into_iter()
        .map(|predicting| {
            let logits;
            (logits, rest) = rest.split_at(predicting.rows.len() / width * vocab);
            Mutex::new((predicting, logits))
        })
        .collect();
    let drawn = on_pool(pool, slots.len(), |slot| {
        let mut slot = slots[slot].lock().unwrap_or_else(PoisonError::into_inner);
        let (predicting, logits) = &mut *slot;
        predicting.sequence.draw(logits, model)
    });
    for (slot, drawn) in slots.into_iter().zip(drawn) {
        let (predicting, _) = slot.into_inner().unwrap_or_else(PoisonError::into_inner);
        load.written_tokens += drawn.len() as u64;
        let Predicting { sequence, rows, gates } = predicting;
        let (drafted, right) = sequence.take_tokens(drawn, (rows, gates), model);
        load.drafts += u64::from(drafted > 0);
        load.drafted_tokens += drafted as u64;
        load.accepted_tokens += right as u64;
    }
}

#[cfg(test)]
#[path = "../tests/tiny/mod.rs"]
mod tiny;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use model::ExpertSet;

    use super::*;
    use crate::{Flow, Request, Sampling};

    fn batch(ledger: Ledger) -> Batch {
        let load = Load::default();
        let (running, again) = (Vec::new(), VecDeque::new());
        Batch { running, again, ledger, page_bytes: 1, steps: 0, load }
    }

    fn shared() -> Shared {
        let limits = Limits { answers: Answers::ReadAgain, ..Limits::default() };
        let (state, wake) = (Mutex::new(State::default()), Condvar::new());
        Shared { model: tiny::model(), limits, state, wake }
    }

    impl Batch {
        /// Whose answer repeats one token.
        fn add(&mut self, prompt: usize, sink: impl FnMut(Event) -> Flow + Send + 'static) {
            let sampling = Sampling { logit_bias: vec![(97, 100.0)], ..Sampling::greedy() };
            let request = Request {
                prompt: vec![1; prompt],
                max_tokens: 100,
                sampling,
                ..Request::default()
            };
            let (account, pages) = self.ledger.open(ExpertSet::NONE, &[], prompt + 100).unwrap();
            let pending = Pending { request, sink: Box::new(sink) };
            let (model, limits) = (tiny::model(), Limits::default());
            let sequence = Sequence::new(pending, &model, &limits, account, pages, self.steps);
            self.running.push(sequence);
        }

        /// Tokens of the sequences in the next step, 0 for those that wait.
        fn shares(&mut self) -> Vec<usize> {
            self.steps += 1;
            let lengths: Vec<usize> =
                self.running.iter().map(|s| s.pending.request.prompt.len()).collect();
            let Batch { running, ledger, load, steps, .. } = self;
            draft(&tiny::model(), &Pool::new(1), running);
            let mut shares = vec![0; lengths.len()];
            for (sequence, tokens) in choose(running, ledger, *steps, load) {
                let length = sequence.pending.request.prompt.len();
                let index = lengths.iter().position(|&l| l == length).unwrap();
                shares[index] = tokens.len();
            }
            shares
        }
    }

    #[test]
    fn a_long_prompt_holds_up_no_short_one_and_is_not_starved() {
        let mut batch = batch(Ledger::new(1000));
        batch.add(3000, |_| Flow::Continue);
        assert_eq!(batch.shares(), [512]);
        batch.add(40, |_| Flow::Continue);
        // The short prompt is read first, and the rest of the step is the long one's.
        assert_eq!(batch.shares(), [448, 40]);
        // A prompt just longer than the room does not starve either, however many short ones come.
        batch.running.truncate(1);
        (0..6).for_each(|index| batch.add(500 + index, |_| Flow::Continue));
        let read = (0..30).map(|_| batch.shares()[0]).position(|tokens| tokens > 0);
        assert!(read.is_some_and(|steps| steps < 25), "{read:?}");
    }

    #[test]
    fn drafts_share_the_rows_that_there_are_for_them() {
        let (shared, pool) = (shared(), Pool::new(1));
        let mut batch = batch(Ledger::new(1000));
        let writing = |batch: &mut Batch, prompts: std::ops::Range<usize>| {
            prompts.for_each(|prompt| batch.add(prompt, |_| Flow::Continue));
            (0..8).for_each(|_| step(&shared, &pool, batch));
            batch.shares()
        };
        assert_eq!(writing(&mut batch, 20..21), [16]);
        batch.running.clear();
        assert_eq!(writing(&mut batch, 20..23), [5, 5, 5]);
        batch.add(500, |_| Flow::Continue);
        // What is drafted is not read.
        assert_eq!(batch.shares(), [5, 5, 5, 96]);
        batch.running.clear();
        assert_eq!(writing(&mut batch, 20..40), [1; 20]);
    }

    #[test]
    fn answers_are_read_again_when_nobody_waits_and_hold_up_nobody() {
        let (shared, pool) = (shared(), Pool::new(1));
        let mut batch = batch(Ledger::new(20));
        let finish = |batch: &mut Batch| {
            batch.add(40, |_| Flow::Continue);
            while !batch.running.is_empty() {
                assert!(batch.again.iter().all(|answer| answer.unread() == 96));
                step(&shared, &pool, batch);
            }
        };
        finish(&mut batch);
        // The first page is the prompt's, and three are still to be read.
        assert_eq!((batch.ledger.kept(), batch.ledger.own(), batch.again.len()), (1, 3, 1));
        finish(&mut batch);
        assert_eq!((batch.ledger.kept(), batch.ledger.own(), batch.again.len()), (1, 6, 2));
        step(&shared, &pool, &mut batch);
        assert_eq!((batch.ledger.kept(), batch.ledger.own()), (2, 5));
        // The same answer again: what was read of one is there for the other.
        (0..4).for_each(|_| step(&shared, &pool, &mut batch));
        assert_eq!((batch.ledger.kept(), batch.ledger.own(), batch.again.len()), (4, 0, 0));
        // Who needs the room gets it.
        batch.ledger = Ledger::new(8);
        finish(&mut batch);
        let request = Request { prompt: vec![2; 200], max_tokens: 50, ..Request::default() };
        let sink = Box::new(|_| Flow::Continue);
        let mut state = State { queue: [Pending { request, sink }].into(), ..State::default() };
        batch.admit_queued(&mut state, &shared);
        assert_eq!((batch.running.len(), batch.again.len(), batch.ledger.own()), (1, 0, 8));
    }

    #[test]
    fn a_step_that_panics_fails_its_requests() {
        let (sender, events) = mpsc::channel();
        let mut batch = batch(Ledger::new(10));
        batch.add(1, move |event| {
            sender.send(event).unwrap();
            Flow::Continue
        });
        guard(&shared(), &mut batch, |_| panic!("a broken step"));
        assert!(batch.running.is_empty());
        assert_eq!(batch.ledger.own(), 0);
        let events: Vec<Event> = events.iter().collect();
        assert!(matches!(events.as_slice(), [Event::Failed(_)]), "{events:?}");
    }
}
