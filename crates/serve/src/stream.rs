use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use engine::Event;
use futures_util::stream;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::choice::{Choice, Keep};
use crate::generation::Running;
use crate::parameters;
use crate::reply::{Form, Reply};
use crate::{chat, completions, messages, responses};

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
    ready: VecDeque<Part>,
    /// Events were numbered up to this.
    numbered: usize,
    ended: bool,
}

/// What is sent at once.
struct Part {
    /// Its kind, where the form names it.
    event: Option<String>,
    data: String,
}

pub(crate) fn response(reply: Reply, running: Running) -> Response {
    let choices = reply.job.choices();
    let streamed = Streamed {
        choices: (0..choices).map(|_| Choice::default()).collect(),
        places: vec![0; choices],
        ready: VecDeque::new(),
        numbered: 0,
        ended: false,
        reply,
        running,
    };
    let parts = stream::unfold(streamed, |mut streamed| async {
        let Part { event, data } = streamed.next().await?;
        let sent = SseEvent::default();
        let sent = match event {
            Some(event) => sent.event(event),
            None => sent,
        };
        Some((Ok::<_, Infallible>(sent.data(data)), streamed))
    });
    let mut response =
        Sse::new(parts).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // nginx would collect the parts.
    let no = axum::http::HeaderValue::from_static("no");
    response.headers_mut().insert("x-accel-buffering", no);
    response
}

impl Streamed {
    async fn next(&mut self) -> Option<Part> {
        while self.ready.is_empty() && !self.ended {
            match self.running.next().await {
                Some(Ok((index, event))) => match self.reply.form {
                    Form::Chat | Form::Text => self.take(index, event),
                    Form::Responses | Form::Messages | Form::Embeddings => self.take_named(event),
                },
                Some(Err(error)) => {
                    self.fail(&error);
                    self.ended = true;
                }
                None => {
                    self.end();
                    self.ended = true;
                }
            }
        }
        self.ready.pop_front()
    }

    fn fail(&mut self, error: &ApiError) {
        match self.reply.form {
            Form::Messages => self.send_named(error.anthropic_json()),
            Form::Responses => {
                let mut event = error.body_json()["error"].take();
                event["type"] = json!("error");
                self.send_named(event);
            }
            _ => self.send_data(error.body_json().to_string()),
        }
    }

    fn end(&mut self) {
        if !matches!(self.reply.form, Form::Chat | Form::Text) {
            return;
        }
        if self.with_usage() {
            let mut chunk = self.reply.chunk(Vec::new());
            chunk["usage"] = self.reply.usage(&self.choices);
            chunk["artel"] = self.reply.all_gates(&self.choices);
            self.send_data(chunk.to_string());
        }
        self.send_data("[DONE]".to_owned());
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
                    _ => completions::token_chunk(reply, index, &token, place),
                };
                choice.take(Event::Token(token), Keep::Counts);
                chunk
            }
            event @ Event::Prompt(_) => {
                choice.take(event, Keep::Counts);
                match form {
                    Form::Chat => Some(chat::first_chunk(index)),
                    _ => completions::first_chunk(reply, index, choice, place),
                }
            }
            event @ Event::Done { .. } => {
                choice.take(event, Keep::Counts);
                let rest = std::mem::take(&mut choice.text);
                Some(match form {
                    Form::Chat => chat::last_chunk(reply, index, choice, &rest),
                    _ => completions::last_chunk(reply, index, choice, &rest),
                })
            }
            Event::Waiting | Event::Prefill { .. } | Event::Failed(_) => None,
        };
        if let Some(chunk) = chunk {
            self.send(chunk);
        }
    }

    /// Takes in an event of the only choice, in a form whose parts have names.
    fn take_named(&mut self, event: Event) {
        let text = match &event {
            Event::Token(token) => token.text.clone(),
            Event::Done { text, .. } => text.clone(),
            _ => String::new(),
        };
        let (first, last) =
            (matches!(event, Event::Prompt(_)), matches!(event, Event::Done { .. }));
        let (reply, choice) = (&self.reply, &mut self.choices[0]);
        choice.take(event, Keep::Tokens);
        let is_messages = reply.form == Form::Messages;
        let mut parts = Vec::new();
        if first {
            parts.extend(match is_messages {
                true => messages::first_events(reply, choice),
                false => responses::first_events(reply, choice),
            });
        }
        if !text.is_empty() {
            parts.push(match is_messages {
                true => messages::text_event(&text),
                false => responses::text_event(reply, &text),
            });
        }
        if last {
            parts.extend(match is_messages {
                true => messages::last_events(reply, choice),
                false => responses::last_events(reply, choice),
            });
        }
        parts.into_iter().for_each(|part| self.send_named(part));
    }

    fn send(&mut self, choice: Value) {
        let mut chunk = self.reply.chunk(vec![choice]);
        if self.with_usage() {
            chunk["usage"] = json!(null);
        }
        self.send_data(chunk.to_string());
    }

    fn send_data(&mut self, data: String) {
        self.ready.push_back(Part { event: None, data });
    }

    /// Sends a part under the name that is its type.
    fn send_named(&mut self, mut part: Value) {
        if self.reply.form == Form::Responses {
            part["sequence_number"] = json!(self.numbered);
            self.numbered += 1;
        }
        let event = part["type"].as_str().map(str::to_owned);
        self.ready.push_back(Part { event, data: part.to_string() });
    }
}
