use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kernel::Pool;
use model::{Hidden, Input, Model};

use crate::logprobs::{for_each_row, log_sum_exp, on_pool, top};
use crate::sequence::{PREFILL, Pending, Sequence};
use crate::{Event, Limits, Load, PromptToken};

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
    let mut running: Vec<Sequence> = Vec::new();
    while let Some(admitted) = wait(shared, &running) {
        running.extend(admitted.into_iter().map(|pending| Sequence::new(pending, &shared.model)));
        guard(&mut running, |running| step(&shared.model, pool, running));
    }
    running.iter_mut().for_each(|sequence| sequence.fail("the engine was stopped"));
    let queue = std::mem::take(&mut shared.lock().queue);
    for mut pending in queue {
        pending.send(Event::Failed("the engine was stopped".to_owned()));
    }
}

/// A step that panics fails its requests, but neither hangs them nor ends the engine.
fn guard(running: &mut Vec<Sequence>, step: impl FnOnce(&mut Vec<Sequence>)) {
    if catch_unwind(AssertUnwindSafe(|| step(running))).is_err() {
        tracing::error!("a step of the engine panicked; its requests fail");
        // The caches may be half-written, so nothing of this batch can go on.
        running.iter_mut().for_each(|sequence| sequence.fail("internal error in the engine"));
        running.clear();
    }
}

/// The requests to admit before the next step; waits while there is nothing to do. None when the
/// engine closes.
fn wait(shared: &Shared, running: &[Sequence]) -> Option<Vec<Pending>> {
    let mut state = shared.lock();
    loop {
        if state.closing {
            return None;
        }
        let mut count = running.len();
        let mut kv_tokens: usize = running.iter().map(|s| s.pending.kv_tokens()).sum();
        let mut admitted = Vec::new();
        // In order of arrival: a large request is not overtaken for ever by small ones.
        while let Some(first) = state.queue.front() {
            let room = kv_tokens + first.kv_tokens() <= shared.limits.kv_tokens;
            if !room || count >= shared.limits.running {
                break;
            }
            kv_tokens += first.kv_tokens();
            count += 1;
            admitted.extend(state.queue.pop_front());
        }
        state.load = Load { running: count, queued: state.queue.len(), kv_tokens };
        if count > 0 {
            return Some(admitted);
        }
        state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// One step of the batch: the next token of every sequence that generates, and up to [`PREFILL`]
/// tokens of those that read their prompts.
fn step(model: &Model, pool: &Pool, running: &mut Vec<Sequence>) {
    for sequence in running.iter_mut().filter(|sequence| sequence.is_reading()) {
        sequence.announce_prefill();
    }
    running.retain(|sequence| !sequence.ended());
    let mut batch = choose(running);
    if batch.is_empty() {
        return;
    }
    let mut inputs: Vec<Input> = batch
        .iter_mut()
        .map(|(sequence, tokens)| Input {
            tokens,
            experts: sequence.experts(),
            cache: &mut sequence.cache,
        })
        .collect();
    let hidden = model.decoder.forward(pool, &mut inputs);
    drop(inputs);
    generate(model, pool, read_prompts(model, pool, batch, &hidden));
    running.retain(|sequence| !sequence.ended());
}

/// The sequences of this step with their tokens. A sequence that reads takes the whole of its next
/// part or waits for the next step; the first always reads, so none waits for ever.
fn choose(running: &mut [Sequence]) -> Vec<(&mut Sequence, Vec<u32>)> {
    let mut read = 0;
    let chosen = running.iter_mut().filter_map(|sequence| {
        let tokens = sequence.step_tokens();
        if sequence.is_reading() {
            if read > 0 && read + tokens.len() > PREFILL {
                return None;
            }
            read += tokens.len();
        }
        Some((sequence, tokens))
    });
    chosen.collect()
}

/// A sequence whose next token is to be drawn: from its hidden row `[hidden]`, with the gates
/// `[experts]` of that row.
struct Predicting<'a> {
    sequence: &'a mut Sequence,
    row: &'a [f32],
    gates: &'a [f32],
}

/// Books the prompt tokens that were read; gives the sequences that draw a token now.
fn read_prompts<'a>(
    model: &Model,
    pool: &Pool,
    batch: Vec<(&'a mut Sequence, Vec<u32>)>,
    hidden: &'a Hidden,
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
        if sequence.is_reading() {
            let scores = score_prompt(model, pool, sequence, tokens.len(), rows);
            sequence.take_prompt(tokens.len(), gates, scores);
        }
        if sequence.draws() {
            let row = &rows[rows.len() - width..];
            let gates = &gates[gates.len() - experts..];
            predicting.push(Predicting { sequence, row, gates });
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

fn generate(model: &Model, pool: &Pool, predicting: Vec<Predicting>) {
    if predicting.is_empty() {
        return;
    }
    let vocab = model.config().vocab;
    let rows: Vec<&[f32]> = predicting.iter().map(|predicting| predicting.row).collect();
    let logits = model.decoder.logits(pool, &rows.concat());
    let slots: Vec<Mutex<Predicting>> = predicting.into_iter().map(Mutex::new).collect();
    let drawn = on_pool(pool, slots.len(), |slot| {
        let mut predicting = slots[slot].lock().unwrap_or_else(PoisonError::into_inner);
        predicting.sequence.draw(&logits[slot * vocab..][..vocab])
    });
    for (slot, drawn) in slots.into_iter().zip(drawn) {
        let Predicting { sequence, gates, .. } =
            slot.into_inner().unwrap_or_else(PoisonError::into_inner);
        sequence.take_token(drawn, gates, model);
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

    #[test]
    fn a_step_that_panics_fails_its_requests() {
        let (sender, events) = mpsc::channel();
        let request = Request {
            prompt: vec![1],
            max_tokens: 1,
            sampling: Sampling::greedy(),
            stop: Vec::new(),
            logprobs: None,
            echo: false,
            experts: ExpertSet::NONE,
        };
        let sink = move |event| {
            sender.send(event).unwrap();
            Flow::Continue
        };
        let pending = Pending { request, sink: Box::new(sink) };
        let mut running = vec![Sequence::new(pending, &tiny::model())];
        guard(&mut running, |_| panic!("a broken step"));
        assert!(running.is_empty());
        let events: Vec<Event> = events.iter().collect();
        assert!(matches!(events.as_slice(), [Event::Failed(_)]), "{events:?}");
    }
}
