use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::{Event, Flow, Request};
use model::ExpertSet;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::parameters::Parameters;

/// What to generate for one HTTP request.
pub(crate) struct Job {
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) parameters: Parameters,
    pub(crate) logprobs: Option<usize>,
    pub(crate) echo: bool,
    /// Tokens of each answer.
    pub(crate) max_tokens: usize,
    /// The field that holds the prompt, for errors.
    pub(crate) prompt_field: &'static str,
}

impl Job {
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

/// The events of a job's choices. Dropping it cancels what still runs.
pub(crate) struct Running {
    events: mpsc::Receiver<(usize, Event)>,
    /// Choices that have not ended.
    unfinished: usize,
    overflowed: Arc<AtomicBool>,
    limit: usize,
}

impl Running {
    /// Submits a request for each choice; none runs if one is refused.
    pub(crate) fn start(app: &Shared, job: &Job) -> Result<Running, ApiError> {
        let limit = app.limits.unread_tokens.max(1);
        let (sender, events) = mpsc::channel(limit);
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
        Ok(Running { events, unfinished: job.choices(), overflowed, limit })
    }

    /// The next event and the choice it belongs to; none when all choices have ended.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Event), ApiError>> {
        if self.unfinished == 0 {
            return None;
        }
        let error = match self.events.recv().await {
            Some((_, Event::Failed(problem))) => ApiError::internal(problem),
            Some((choice, event)) => {
                self.unfinished -= usize::from(matches!(event, Event::Done { .. }));
                return Some(Ok((choice, event)));
            }
            None if self.overflowed.load(Ordering::Relaxed) => ApiError::slow_reader(self.limit),
            None => ApiError::stopping(),
        };
        self.unfinished = 0;
        Some(Err(error))
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
        logprobs: job.logprobs,
        echo: job.echo,
        experts: job.experts(),
    }
}
