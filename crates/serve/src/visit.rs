use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;

use crate::app::App;
use crate::ids;

/// One request from its beginning to the end of its answer, streamed or not: whoever holds it may
/// add what is known. When the last has let go, it is counted and written to the audit log.
#[derive(Clone)]
pub(crate) struct Visit(Arc<Record>);

struct Record {
    app: App,
    begun: Instant,
    outcome: Mutex<Outcome>,
}

/// What a request came to. Nothing of what it said.
#[derive(Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) endpoint: String,
    /// The name of its key.
    pub(crate) key: Option<String>,
    /// The experts it was permitted and wanted.
    pub(crate) experts: Vec<String>,
    pub(crate) status: u16,
    pub(crate) prompt_tokens: usize,
    pub(crate) reused_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// Ended before its answer did, because the client left or was too slow.
    pub(crate) cancelled: bool,
    pub(crate) first_token: Option<Duration>,
    pub(crate) time: Duration,
}

impl Visit {
    pub(crate) fn note(&self, change: impl FnOnce(&mut Outcome)) {
        change(&mut self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Notes the time of the answer's first token.
    pub(crate) fn note_token(&self) {
        let time = self.0.begun.elapsed();
        self.note(|outcome| {
            outcome.first_token.get_or_insert(time);
            outcome.completion_tokens += 1;
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.time = self.begun.elapsed();
        self.app.metrics.add(&outcome);
        if let Some(log) = &self.app.audit {
            log.write(&outcome);
        }
    }
}

/// Follows a request.
pub(crate) async fn follow(State(app): State<App>, mut request: Request, next: Next) -> Response {
    // Only of routes that are there; and what clients make up does not become a name.
    let path = request.uri().path();
    let endpoint = if path.starts_with("/v1/models/") { "/v1/models/{model}" } else { path };
    let outcome = Outcome { endpoint: endpoint.to_owned(), ..Outcome::default() };
    let record = Record { app, begun: Instant::now(), outcome: Mutex::new(outcome) };
    let visit = Visit(Arc::new(record));
    request.extensions_mut().insert(visit.clone());
    let response = next.run(request).await;
    visit.note(|outcome| outcome.status = response.status().as_u16());
    response
}

/// A file that gets a line of JSON for each request: when, who, what it took; never a prompt or an
/// answer.
pub(crate) struct AuditLog(Mutex<std::fs::File>);

impl AuditLog {
    pub(crate) fn open(path: &std::path::Path) -> std::io::Result<Self> {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path)?;
        Ok(AuditLog(Mutex::new(file)))
    }

    fn write(&self, outcome: &Outcome) {
        let seconds = |time: Duration| (time.as_secs_f64() * 1e3).round() / 1e3;
        let line = json!({
            "time": ids::now(),
            "endpoint": outcome.endpoint,
            "key": outcome.key,
            "experts": outcome.experts,
            "status": outcome.status,
            "cancelled": outcome.cancelled,
            "prompt_tokens": outcome.prompt_tokens,
            "reused_tokens": outcome.reused_tokens,
            "completion_tokens": outcome.completion_tokens,
            "first_token_seconds": outcome.first_token.map(seconds),
            "seconds": seconds(outcome.time),
        });
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            tracing::error!(%error, "the audit log cannot be written");
        }
    }
}
