use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::{Constraint, Event, Flow, Request};
use model::ExpertSet;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, timeout_at};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::conversation::Conversation;
use crate::format::{self, Format};
use crate::keys::Caller;
use crate::parameters::Parameters;
use crate::thinking::Thoughts;
use crate::tools::Tools;

/// What to generate for one HTTP request.
pub(crate) struct Job {
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) parameters: Parameters,
    /// What the text must be.
    pub(crate) constraint: Option<Constraint>,
    pub(crate) thoughts: Thoughts,
    /// Whether the text may hold calls of tools.
    pub(crate) calls: bool,
    pub(crate) logprobs: Option<usize>,
    pub(crate) echo: bool,
    /// Report the mean of the prompt's hidden rows.
    pub(crate) embed: bool,
    /// Tokens of each answer.
    pub(crate) max_tokens: usize,
    /// The field that holds the prompt, for errors.
    pub(crate) prompt_field: &'static str,
    /// What the answer repeats of the request.
    pub(crate) repeated: Map<String, Value>,
}

impl Job {
    /// Text after each of the prompts, of `answer_tokens` where the request sets no length.
    pub(crate) fn new(
        prompts: Vec<Vec<u32>>,
        prompt_field: &'static str,
        parameters: Parameters,
        answer_tokens: usize,
    ) -> Self {
        Job {
            prompts,
            max_tokens: parameters.max_tokens.unwrap_or(answer_tokens),
            parameters,
            constraint: None,
            thoughts: Thoughts::Never,
            calls: false,
            logprobs: None,
            echo: false,
            embed: false,
            prompt_field,
            repeated: Map::new(),
        }
    }

    /// The answer to a conversation, held to what the request asks of it.
    pub(crate) fn of_conversation(
        app: &Shared,
        conversation: &Conversation,
        prompt_field: &'static str,
        parameters: Parameters,
    ) -> Result<Self, ApiError> {
        let prompt = conversation.prompt(app, prompt_field)?;
        let thoughts = Thoughts::behind(app, &prompt);
        let tools = &conversation.tools;
        let constraint = constraint(app, &parameters.format, tools, thoughts)?;
        let job = Job::new(vec![prompt], prompt_field, parameters, app.limits.answer_tokens);
        Ok(Job { constraint, thoughts, calls: tools.are_usable(), ..job })
    }

    pub(crate) fn experts(&self) -> ExpertSet {
        self.parameters.experts
    }

    pub(crate) fn choices(&self) -> usize {
        self.prompts.len() * self.parameters.n
    }

    /// The prompt of a choice: `n` choices for the first prompt come first.
    pub(crate) fn prompt(&self, choice: usize) -> &[u32] {
        &self.prompts[choice / self.parameters.n]
    }
}

/// What a request asks of the text.
pub(crate) fn constraint(
    app: &Shared,
    format: &Format,
    tools: &Tools,
    thoughts: Thoughts,
) -> Result<Option<Constraint>, ApiError> {
    let Some(grammar) = format::grammar(format, tools, thoughts) else { return Ok(None) };
    let field = if *format == Format::Free { "tools" } else { format.field() };
    let constraint = app.engine.constraint(&grammar);
    constraint.map(Some).map_err(|error| ApiError::of_engine(error, field))
}

/// The events of a job's choices. Dropping it cancels what still runs.
pub(crate) struct Running {
    events: mpsc::Receiver<(usize, Event)>,
    caller: Caller,
    /// Choices that have not ended.
    unfinished: usize,
    /// Tokens that were generated.
    written: usize,
    overflowed: Arc<AtomicBool>,
    unread_limit: usize,
    deadline: Instant,
    time_limit: std::time::Duration,
}

impl Running {
    /// Submits a request for each choice; none runs if one is refused.
    pub(crate) fn start(app: &Shared, job: &Job, caller: Caller) -> Result<Running, ApiError> {
        let unread_limit = app.limits.unread_tokens.max(1);
        let (sender, events) = mpsc::channel(unread_limit);
        let overflowed = Arc::new(AtomicBool::new(false));
        for choice in 0..job.choices() {
            let (sender, overflowed) = (sender.clone(), Arc::clone(&overflowed));
            let sink = move |event| match sender.try_send((choice, event)) {
                Ok(()) => Flow::Continue,
                Err(TrySendError::Full(_)) => {
                    overflowed.store(true, Ordering::Relaxed);
                    Flow::Stop
                }
                Err(TrySendError::Closed(_)) => Flow::Stop,
            };
            // On an error the receiver is dropped, which cancels the choices before this one.
            app.engine
                .submit(request(job, choice), Box::new(sink))
                .map_err(|error| ApiError::of_engine(error, job.prompt_field))?;
        }
        let prompt_tokens = job.prompts.iter().map(Vec::len).sum();
        let experts = app.names_of(job.experts()).cloned().collect();
        caller.visit.note(|outcome| {
            outcome.prompt_tokens = prompt_tokens;
            outcome.experts = experts;
        });
        caller.use_tokens(prompt_tokens);
        Ok(Running {
            events,
            caller,
            unfinished: job.choices(),
            written: 0,
            overflowed,
            unread_limit,
            deadline: Instant::now() + app.limits.answer_time,
            time_limit: app.limits.answer_time,
        })
    }

    /// The next event and the choice it belongs to; none when all choices have ended.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Event), ApiError>> {
        if self.unfinished == 0 {
            return None;
        }
        let error = match timeout_at(self.deadline, self.events.recv()).await {
            Ok(Some((_, Event::Failed(problem)))) => ApiError::internal(problem),
            Ok(Some((choice, event))) => {
                self.book(&event);
                return Some(Ok((choice, event)));
            }
            Ok(None) if self.overflowed.load(Ordering::Relaxed) => {
                ApiError::slow_reader(self.unread_limit)
            }
            Ok(None) => ApiError::stopping(),
            Err(_) => ApiError::answer_time(self.time_limit),
        };
        self.unfinished = 0;
        self.events.close();
        Some(Err(error))
    }

    fn book(&mut self, event: &Event) {
        match event {
            Event::Prompt(prompt) => {
                self.caller.visit.note(|outcome| outcome.reused_tokens += prompt.reused);
            }
            Event::Token(_) => {
                self.written += 1;
                self.caller.visit.note_token();
            }
            Event::Done { .. } => self.unfinished -= 1,
            Event::Waiting | Event::Prefill { .. } | Event::Failed(_) => {}
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.caller.use_tokens(self.written);
        if self.unfinished > 0 {
            self.caller.visit.note(|outcome| outcome.cancelled = true);
        }
    }
}

fn request(job: &Job, choice: usize) -> Request {
    let mut sampling = job.parameters.sampling.clone();
    // Choices of one prompt differ; the first is what n = 1 gives.
    sampling.seed = sampling.seed.wrapping_add((choice % job.parameters.n) as u64);
    Request {
        prompt: job.prompt(choice).to_vec(),
        max_tokens: job.max_tokens,
        sampling,
        stop: job.parameters.stop.clone(),
        constraint: job.constraint.clone(),
        logprobs: job.logprobs,
        echo: job.echo,
        embed: job.embed,
        experts: job.experts(),
    }
}
