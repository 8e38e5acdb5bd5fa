//! OpenAI's Responses API. Nothing is stored: a conversation is sent whole each time.

use engine::Finish;
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::chat;
use crate::choice::{Choice, Part};
use crate::conversation::{Call, Conversation, Turn, arguments};
use crate::fields::{Fields, wrong};
use crate::format::Format;
use crate::generation::Job;
use crate::keys::Caller;
use crate::parameters::{self, Parameters};
use crate::pieces::Piece;
use crate::reply::Reply;
use crate::stream::Named;
use crate::thinking::Effort;
use crate::tools::{Shape, Tools, text};

/// Kinds of parts whose text counts.
const PARTS: [&str; 3] = ["input_text", "output_text", "text"];

/// Reads the body of `/v1/responses`.
pub(crate) fn read(app: &Shared, body: &[u8], caller: &Caller) -> Result<Job, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut parameters = Parameters::of_one(&mut fields, app, caller)?;
    let max = fields.integer("max_output_tokens", 1..=i64::MAX)?;
    parameters.max_tokens = max.and_then(|tokens| usize::try_from(tokens).ok());
    parameters.stream = parameters::stream(&mut fields)?;
    let mut repeated = repeated(&fields);
    repeated.insert("max_output_tokens".into(), json!(max));
    repeated.insert("temperature".into(), json!(parameters.sampling.temperature));
    repeated.insert("top_p".into(), json!(parameters.sampling.top_p));
    if let Some(wanted) = fields.value("text") {
        let mut wanted = Fields::of("text", wanted)?;
        if let Some(format) = wanted.value("format") {
            parameters.format = Format::flat("text.format", format)?;
        }
        wanted.unsupported(&[("verbosity", &[json!("medium")])])?;
        wanted.finish()?;
    }
    let tools = Tools::of_openai(&mut fields, Shape::Flat)?;
    let effort = effort(app, &mut fields)?;
    let instructions = fields.text("instructions")?;
    fields.ignore(&["metadata"]);
    unsupported(&mut fields)?;
    let turns = turns(instructions, fields.required("input")?)?;
    fields.finish()?;
    let conversation = Conversation { turns, tools, effort };
    let job = Job::of_conversation(app, &conversation, "input", parameters)?;
    Ok(Job { repeated, ..job })
}

/// What the answer repeats of the request, as it was sent.
fn repeated(fields: &Fields) -> Map<String, Value> {
    let said = |name: &str, unsaid: Value| {
        let value = fields.peek(name).filter(|value| !value.is_null());
        (name.to_owned(), value.cloned().unwrap_or(unsaid))
    };
    Map::from_iter([
        said("instructions", Value::Null),
        said("metadata", json!({})),
        said("parallel_tool_calls", json!(true)),
        said("text", json!({"format": {"type": "text"}})),
        said("tool_choice", json!("auto")),
        said("tools", json!([])),
    ])
}

fn effort(app: &Shared, fields: &mut Fields) -> Result<Effort, ApiError> {
    let Some(reasoning) = fields.value("reasoning") else { return Ok(Effort::Unsaid) };
    let mut reasoning = Fields::of("reasoning", reasoning)?;
    let effort = Effort::read(app, "reasoning.effort", reasoning.text("effort")?)?;
    // Thoughts are given as they are.
    reasoning.unsupported(&[("summary", &[]), ("generate_summary", &[])])?;
    reasoning.finish()?;
    Ok(effort)
}

fn unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.ignore(&parameters::IGNORED);
    fields.unsupported(&[
        ("max_tool_calls", &[]),
        ("include", &[json!([])]),
        ("previous_response_id", &[]),
        ("conversation", &[]),
        ("prompt", &[]),
        ("background", &[json!(false)]),
        ("truncation", &[json!("disabled")]),
        ("top_logprobs", &[json!(0)]),
    ])
}

fn turns(instructions: Option<String>, input: Value) -> Result<Vec<Turn>, ApiError> {
    let mut turns: Vec<Turn> =
        instructions.map(|text| Turn::new("system", text)).into_iter().collect();
    match input {
        Value::String(text) => turns.push(Turn::new("user", text)),
        Value::Array(items) if items.is_empty() => {
            return Err(ApiError::invalid("input", "input is empty: give at least one message"));
        }
        Value::Array(items) => {
            for (index, item) in items.into_iter().enumerate() {
                add_item(&format!("input[{index}]"), item, &mut turns)?;
            }
        }
        other => return Err(wrong("input", "a string or a list of messages", &other)),
    }
    Ok(turns)
}

fn add_item(path: &str, mut item: Value, turns: &mut Vec<Turn>) -> Result<(), ApiError> {
    let Value::Object(fields) = &mut item else { return Err(wrong(path, "an object", &item)) };
    let kind = fields.shift_remove("type").unwrap_or_else(|| json!("message"));
    // Of answers that are sent back.
    ["id", "status"].iter().for_each(|name| drop(fields.shift_remove(*name)));
    match kind.as_str() {
        Some("message") => {
            turns.push(chat::turn(path, item, &["system", "user", "assistant"], &PARTS)?);
        }
        Some("function_call") => {
            let mut fields = Fields::of(path, item)?;
            let id = text(&fields.path("call_id"), fields.required("call_id")?)?;
            let name = text(&fields.path("name"), fields.required("name")?)?;
            let written = text(&fields.path("arguments"), fields.required("arguments")?)?;
            let arguments = arguments(&fields.path("arguments"), &written)?;
            fields.finish()?;
            assistant(turns).calls.push(Call { id, name, arguments });
        }
        Some("function_call_output") => {
            let mut fields = Fields::of(path, item)?;
            let id = text(&fields.path("call_id"), fields.required("call_id")?)?;
            let output = fields.required("output")?;
            let output = chat::content(&fields.path("output"), output, &PARTS)?;
            fields.finish()?;
            turns.push(Turn { answers: Some(id), ..Turn::new("tool", output) });
        }
        Some("reasoning") => {
            let mut fields = Fields::of(path, item)?;
            fields.ignore(&["summary", "encrypted_content"]);
            let content = fields.value("content").unwrap_or_else(|| json!([]));
            let thought = chat::content(&fields.path("content"), content, &["reasoning_text"])?;
            fields.finish()?;
            turns.push(Turn { thought: Some(thought), ..Turn::new("assistant", String::new()) });
        }
        _ => {
            let path = format!("{path}.type");
            let message = format!(
                "{path} is {kind}, allowed are message, function_call, function_call_output and \
                 reasoning"
            );
            return Err(ApiError::invalid(path, message).with_code("unsupported_parameter"));
        }
    }
    Ok(())
}

/// The assistant's turn that a call belongs to: text, thoughts and calls of one answer are items
/// of their own here.
fn assistant(turns: &mut Vec<Turn>) -> &mut Turn {
    if turns.last().is_none_or(|turn| turn.role != "assistant") {
        turns.push(Turn::new("assistant", String::new()));
    }
    turns.last_mut().expect("one was just added")
}

/// The answer; `choice` is what it has become so far.
pub(crate) fn whole(reply: &Reply, choice: &Choice) -> Value {
    let cut = matches!(choice.finish, Some(Finish::Length));
    let mut answer = json!({
        "id": reply.id,
        "object": "response",
        "created_at": reply.created,
        "status": status(choice),
        "error": null,
        "incomplete_details": cut.then(|| json!({"reason": "max_output_tokens"})),
        "model": reply.app.model_name,
        "output": [],
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "store": false,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "truncation": "disabled",
        "usage": null,
    });
    for (name, value) in &reply.job.repeated {
        answer[name] = value.clone();
    }
    if choice.finish.is_some() {
        let prompt = reply.job.prompts[0].len();
        let items = (0..choice.parts.len()).map(|part| item(reply, choice, part, status(choice)));
        answer["output"] = items.collect();
        answer["usage"] = json!({
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": choice.prompt.reused},
            "output_tokens": choice.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": choice.thought_tokens},
            "total_tokens": prompt + choice.completion_tokens,
        });
        answer["artel"] = reply.all_gates(std::slice::from_ref(choice));
    }
    answer
}

fn status(choice: &Choice) -> &'static str {
    match choice.finish {
        None => "in_progress",
        Some(Finish::Length) => "incomplete",
        Some(Finish::Stop | Finish::StopString(_)) => "completed",
    }
}

/// A part of the answer; without what it says while it is in progress.
fn item(reply: &Reply, choice: &Choice, part: usize, status: &str) -> Value {
    let begins = status == "in_progress";
    let id = item_id(reply, choice, part);
    match &choice.parts[part] {
        Part::Text(text) => {
            let content = if begins { json!([]) } else { json!([text_part(text)]) };
            json!({
                "type": "message", "id": id, "status": status, "role": "assistant",
                "content": content,
            })
        }
        Part::Thought(text) => {
            let content = if begins { json!([]) } else { json!([thought_part(text)]) };
            json!({
                "type": "reasoning", "id": id, "status": status, "summary": [],
                "content": content,
            })
        }
        Part::Call { id: call, name, arguments } => {
            let arguments = if begins { "" } else { arguments };
            json!({
                "type": "function_call", "id": id, "call_id": call, "name": name,
                "arguments": arguments, "status": status,
            })
        }
    }
}

fn item_id(reply: &Reply, choice: &Choice, part: usize) -> String {
    let prefix = match &choice.parts[part] {
        Part::Text(_) => "msg-",
        Part::Thought(_) => "rs-",
        Part::Call { .. } => "fc-",
    };
    let id = reply.id.replace("resp-", prefix);
    if part == 0 { id } else { format!("{id}-{part}") }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn thought_part(text: &str) -> Value {
    json!({"type": "reasoning_text", "text": text})
}

/// The events of a stream.
pub(crate) struct Events;

impl Named for Events {
    fn first(&self, reply: &Reply, choice: &Choice) -> Vec<Value> {
        let response = whole(reply, choice);
        vec![
            json!({"type": "response.created", "response": response}),
            json!({"type": "response.in_progress", "response": response}),
        ]
    }

    fn begin(&self, reply: &Reply, choice: &Choice, part: usize) -> Vec<Value> {
        let item = item(reply, choice, part, "in_progress");
        let kind = "response.output_item.added";
        let mut events = vec![json!({"type": kind, "output_index": part, "item": item})];
        let empty = match &choice.parts[part] {
            Part::Text(_) => text_part(""),
            Part::Thought(_) => thought_part(""),
            Part::Call { .. } => return events,
        };
        let event = json!({"type": "response.content_part.added", "part": empty});
        events.push(at(reply, choice, part, event));
        events
    }

    fn more(&self, reply: &Reply, choice: &Choice, part: usize, piece: &Piece) -> Option<Value> {
        let event = match piece {
            Piece::Text(text) => {
                json!({"type": "response.output_text.delta", "delta": text, "logprobs": []})
            }
            Piece::Thought(text) => json!({"type": "response.reasoning_text.delta", "delta": text}),
            Piece::Arguments(text) => {
                json!({"type": "response.function_call_arguments.delta", "delta": text})
            }
            Piece::Call(_) => return None,
        };
        Some(at(reply, choice, part, event))
    }

    fn end(&self, reply: &Reply, choice: &Choice, part: usize) -> Vec<Value> {
        // A part that another follows is complete.
        let status = if part + 1 < choice.parts.len() { "completed" } else { status(choice) };
        let status = if status == "in_progress" { "completed" } else { status };
        let item = item(reply, choice, part, status);
        let done = match &choice.parts[part] {
            Part::Text(text) => vec![
                json!({"type": "response.output_text.done", "text": text, "logprobs": []}),
                json!({"type": "response.content_part.done", "part": text_part(text)}),
            ],
            Part::Thought(text) => vec![
                json!({"type": "response.reasoning_text.done", "text": text}),
                json!({"type": "response.content_part.done", "part": thought_part(text)}),
            ],
            Part::Call { name, arguments, .. } => {
                let kind = "response.function_call_arguments.done";
                vec![json!({"type": kind, "name": name, "arguments": arguments})]
            }
        };
        let mut events: Vec<Value> =
            done.into_iter().map(|event| at(reply, choice, part, event)).collect();
        let kind = "response.output_item.done";
        events.push(json!({"type": kind, "output_index": part, "item": item}));
        events
    }

    fn last(&self, reply: &Reply, choice: &Choice) -> Vec<Value> {
        let end = match choice.finish {
            Some(Finish::Length) => "response.incomplete",
            _ => "response.completed",
        };
        vec![json!({"type": end, "response": whole(reply, choice)})]
    }
}

/// Adds where an event belongs.
fn at(reply: &Reply, choice: &Choice, part: usize, mut event: Value) -> Value {
    event["item_id"] = json!(item_id(reply, choice, part));
    event["output_index"] = json!(part);
    if !matches!(choice.parts[part], Part::Call { .. }) {
        event["content_index"] = json!(0);
    }
    event
}
