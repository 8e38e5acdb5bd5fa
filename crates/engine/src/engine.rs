use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use kernel::Pool;
use model::{ExpertSet, Model};

use crate::constraint::Grammars;
use crate::sequence::Pending;
use crate::worker::{Shared, State, work};
use crate::{Completion, Constraint, Error, Event, Flow, Limits, Load, Prompt, Request};

/// Generates text for many requests at once.
///
/// A worker thread steps all running sequences in one batch; requests join and leave between
/// steps. Clones share the worker, which ends with the last of them.
#[derive(Clone)]
pub struct Engine(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
    grammars: Grammars,
}

impl Engine {
    pub fn start(model: Arc<Model>, pool: Pool, limits: Limits) -> Engine {
        let (state, wake) = (Mutex::new(State::default()), Condvar::new());
        let shared = Arc::new(Shared { model, limits, state, wake });
        let worker = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || work(&shared, &pool)
        });
        Engine(Arc::new(Handle {
            shared,
            worker: Mutex::new(Some(worker)),
            grammars: Grammars::default(),
        }))
    }

    pub fn model(&self) -> &Model {
        &self.0.shared.model
    }

    pub fn limits(&self) -> Limits {
        self.0.shared.limits
    }

    pub fn load(&self) -> Load {
        let state = self.0.shared.lock();
        Load { queued: state.queue.len(), ..state.load }
    }

    /// What a grammar asks of a text, in the dialect of Lark that `llguidance` reads (it takes JSON
    /// schemas as `%json {…}`). May take a while: do it aside.
    ///
    /// # Errors
    /// A grammar that is wrong, too long or takes too much work, or a model without an end token.
    pub fn constraint(&self, grammar: &str) -> Result<Constraint, Error> {
        self.0.grammars.constraint(self.model(), grammar)
    }

    /// Queues a request. Its events go to `sink`, which must neither block nor call the engine;
    /// after `Done`, `Failed` or [`Flow::Stop`] the sink is dropped.
    ///
    /// # Errors
    /// A request that can never run (names the parameter, its value and what is allowed), or a
    /// full queue.
    pub fn submit(
        &self,
        request: Request,
        sink: Box<dyn FnMut(Event) -> Flow + Send>,
    ) -> Result<(), Error> {
        let pending = Pending { request: self.check(request)?, sink };
        let limits = self.0.shared.limits;
        let (needed, limit) = (pending.kv_tokens(), limits.kv_tokens(self.model().config()));
        if needed > limit {
            return Err(Error::KvLimit { needed, limit });
        }
        let mut state = self.0.shared.lock();
        if state.closing {
            return Err(Error::Stopped);
        }
        if state.queue.len() >= limits.queued {
            // Those whose clients have left make room.
            state.queue.retain_mut(Pending::is_wanted);
        }
        if state.queue.len() >= limits.queued {
            return Err(Error::QueueFull { limit: limits.queued });
        }
        state.queue.push_back(pending);
        drop(state);
        self.0.shared.wake.notify_one();
        Ok(())
    }

    /// Runs a request to its end; blocks meanwhile.
    ///
    /// # Errors
    /// As [`Engine::submit`], or the generation failed.
    pub fn generate(&self, request: Request) -> Result<Completion, Error> {
        let (sender, events) = mpsc::channel();
        let send = move |event| match sender.send(event) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Stop,
        };
        self.submit(request, Box::new(send))?;
        let (mut text, mut tokens, mut prompt) = (String::new(), Vec::new(), Prompt::default());
        for event in events {
            match event {
                Event::Waiting | Event::Prefill { .. } => {}
                Event::Prompt(read) => prompt = read,
                Event::Token(token) => {
                    text.push_str(&token.text);
                    tokens.push(token);
                }
                Event::Done { reason, text: rest, prompt_tokens, completion_tokens } => {
                    text.push_str(&rest);
                    return Ok(Completion {
                        text,
                        tokens,
                        prompt,
                        reason,
                        prompt_tokens,
                        completion_tokens,
                    });
                }
                Event::Failed(problem) => return Err(Error::Failed(problem)),
            }
        }
        Err(Error::Stopped)
    }

    /// The request, fit to run: experts that exist, and `max_tokens` that the context holds.
    fn check(&self, mut request: Request) -> Result<Request, Error> {
        let config = self.model().config();
        let (context, vocab) = (config.context, config.vocab);
        let tokens = request.prompt.len();
        if tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        let reserve = usize::from(request.max_tokens > 0);
        if tokens + reserve > context {
            return Err(Error::Context { tokens, context, reserve });
        }
        if let Some(&token) = request.prompt.iter().find(|&&token| token as usize >= vocab) {
            return Err(Error::Token { token, vocab });
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(Error::EmptyStop);
        }
        request.sampling.check(vocab)?;
        request.max_tokens = request.max_tokens.min(context - tokens);
        let experts = config.experts.as_ref().map_or(0, |experts| experts.names.len());
        request.experts = request.experts.intersect(ExpertSet::all(experts));
        Ok(request)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
        let worker = self.worker.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(worker) = worker {
            // A sink may hold the last clone of the engine: the worker cannot wait for itself.
            if worker.thread().id() != std::thread::current().id() {
                // The worker catches panics, so there is nothing to learn from the result.
                let _ = worker.join();
            }
        }
    }
}
