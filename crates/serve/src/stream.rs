use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use engine::Event;
use futures_util::stream;
use serde_json::{Value, json};

use crate::choice::{Choice, Keep};
use crate::generation::Running;
use crate::parameters;
use crate::reply::{Form, Reply};
use crate::{chat, completions};

/// Comments are sent this often while nothing else is, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A streamed answer. It is made as the client reads it; a client that leaves drops it, which
/// cancels the generation.
struct Streamed {
    reply: Reply,
    running: Running,
    choices: Vec<Choice>,
    /// How far the text of each choice has got, in characters.
    places: Vec<usize>,
    /// Parts that are ready to send.
    ready: VecDeque<String>,
    ended: bool,
}

pub(crate) fn response(reply: Reply, running: Running) -> Response {
    let choices = reply.job.choices();
    let streamed = Streamed {
        choices: (0..choices).map(|_| Choice::default()).collect(),
        places: vec![0; choices],
        ready: VecDeque::new(),
        ended: false,
        reply,
        running,
    };
    let parts = stream::unfold(streamed, |mut streamed| async {
        let part = streamed.next().await?;
        Some((Ok::<_, Infallible>(SseEvent::default().data(part)), streamed))
    });
    let mut response =
        Sse::new(parts).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // nginx would collect the parts.
    let no = axum::http::HeaderValue::from_static("no");
    response.headers_mut().insert("x-accel-buffering", no);
    response
}

impl Streamed {
    async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() && !self.ended {
            match self.running.next().await {
                Some(Ok((index, event))) => self.take(index, event),
                Some(Err(error)) => {
                    self.ready.push_back(error.body_json().to_string());
                    self.ended = true;
                }
                None => {
                    if self.with_usage() {
                        let mut chunk = self.reply.chunk(Vec::new());
                        chunk["usage"] = self.reply.usage(&self.choices);
                        chunk["artel"] = self.reply.all_gates(&self.choices);
                        self.ready.push_back(chunk.to_string());
                    }
                    self.ready.push_back("[DONE]".to_owned());
                    self.ended = true;
                }
            }
        }
        self.ready.pop_front()
    }

    fn with_usage(&self) -> bool {
        self.reply.job.parameters.stream == parameters::Stream::WithUsage
    }

    fn take(&mut self, index: usize, event: Event) {
        let (choice, place) = (&mut self.choices[index], &mut self.places[index]);
        let (reply, form) = (&self.reply, self.reply.form);
        let chunk = match event {
            Event::Token(token) => {
                let chunk = match form {
                    Form::Chat => chat::token_chunk(reply, index, &token),
                    Form::Text => completions::token_chunk(reply, index, &token, place),
                };
                choice.take(Event::Token(token), Keep::Counts);
                chunk
            }
            event @ Event::Prompt(_) => {
                choice.take(event, Keep::Counts);
                match form {
                    Form::Chat => Some(chat::first_chunk(index)),
                    Form::Text => completions::first_chunk(reply, index, choice, place),
                }
            }
            event @ Event::Done { .. } => {
                choice.take(event, Keep::Counts);
                let rest = std::mem::take(&mut choice.text);
                Some(match form {
                    Form::Chat => chat::last_chunk(reply, index, choice, &rest),
                    Form::Text => completions::last_chunk(reply, index, choice, &rest),
                })
            }
            Event::Prefill { .. } | Event::Failed(_) => None,
        };
        if let Some(chunk) = chunk {
            self.send(chunk);
        }
    }

    fn send(&mut self, choice: Value) {
        let mut chunk = self.reply.chunk(vec![choice]);
        if self.with_usage() {
            chunk["usage"] = json!(null);
        }
        self.ready.push_back(chunk.to_string());
    }
}
