use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use engine::Event;
use futures_util::stream;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::choice::{self, Choice, Keep};
use crate::generation::Running;
use crate::parameters;
use crate::pieces::Piece;
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
    /// The part of the only choice that is being sent, in a form whose parts have names.
    open: Option<usize>,
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

/// How a form names what it sends of its only choice, whose parts have numbers.
pub(crate) trait Named {
    fn first(&self, reply: &Reply, choice: &Choice) -> Vec<Value>;
    fn begin(&self, reply: &Reply, choice: &Choice, part: usize) -> Vec<Value>;
    fn more(&self, reply: &Reply, choice: &Choice, part: usize, piece: &Piece) -> Option<Value>;
    fn end(&self, reply: &Reply, choice: &Choice, part: usize) -> Vec<Value>;
    fn last(&self, reply: &Reply, choice: &Choice) -> Vec<Value>;
}

pub(crate) fn response(reply: Reply, running: Running) -> Response {
    let choices = reply.job.choices();
    let streamed = Streamed {
        choices: (0..choices).map(|_| Choice::of(&reply.job)).collect(),
        places: vec![0; choices],
        ready: VecDeque::new(),
        open: None,
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
        let reply = &self.reply;
        let is_chat = reply.form == Form::Chat;
        let chunks = match event {
            Event::Token(token) if is_chat => {
                let pieces = choice.take(Event::Token(token.clone()), Keep::Counts);
                chat::chunks(reply, index, choice, &pieces, Some(&token))
            }
            Event::Token(token) => {
                let chunk = completions::token_chunk(reply, index, &token, place);
                choice.take(Event::Token(token), Keep::Counts);
                chunk.into_iter().collect()
            }
            event @ Event::Prompt(_) => {
                choice.take(event, Keep::Counts);
                match is_chat {
                    true => vec![chat::first_chunk(index)],
                    false => {
                        completions::first_chunk(reply, index, choice, place).into_iter().collect()
                    }
                }
            }
            Event::Done { ref text, .. } => {
                let rest = text.clone();
                let pieces = choice.take(event, Keep::Counts);
                match is_chat {
                    true => {
                        let mut chunks = chat::chunks(reply, index, choice, &pieces, None);
                        chunks.push(chat::last_chunk(reply, index, choice));
                        chunks
                    }
                    false => vec![completions::last_chunk(reply, index, choice, &rest)],
                }
            }
            Event::Waiting | Event::Prefill { .. } | Event::Failed(_) => Vec::new(),
        };
        chunks.into_iter().for_each(|chunk| self.send(chunk));
    }

    /// Takes in an event of the only choice, in a form whose parts have names.
    fn take_named(&mut self, event: Event) {
        let (first, last) =
            (matches!(event, Event::Prompt(_)), matches!(event, Event::Done { .. }));
        let (reply, choice) = (&self.reply, &mut self.choices[0]);
        let pieces = choice.take(event, Keep::Counts);
        let named: &dyn Named = match reply.form {
            Form::Messages => &messages::Events,
            _ => &responses::Events,
        };
        let mut events = Vec::new();
        if first {
            events.extend(named.first(reply, choice));
        }
        for piece in &pieces {
            let begins = match (piece, self.open.map(|open| &choice.parts[open])) {
                (Piece::Call(_), _) | (_, None) => true,
                (Piece::Thought(_), Some(part)) => !matches!(part, choice::Part::Thought(_)),
                (Piece::Text(_), Some(part)) => !matches!(part, choice::Part::Text(_)),
                (Piece::Arguments(_), Some(_)) => false,
            };
            if begins {
                let next = self.open.map_or(0, |open| open + 1);
                if let Some(open) = self.open.replace(next) {
                    events.extend(named.end(reply, choice, open));
                }
                events.extend(named.begin(reply, choice, next));
            }
            events.extend(self.open.and_then(|open| named.more(reply, choice, open, piece)));
        }
        if last {
            let open = self.open.unwrap_or_else(|| {
                events.extend(named.begin(reply, choice, 0));
                0
            });
            events.extend(named.end(reply, choice, open));
            events.extend(named.last(reply, choice));
        }
        events.into_iter().for_each(|event| self.send_named(event));
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
