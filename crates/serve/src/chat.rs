use engine::Token;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::choice::Choice;
use crate::conversation::{Call, Conversation, Turn, arguments};
use crate::fields::{Fields, wrong};
use crate::generation::Job;
use crate::keys::Caller;
use crate::parameters::{MOST_LOGPROBS, Parameters};
use crate::pieces::Piece;
use crate::reply::{Reply, finish_reason, token_bytes};
use crate::thinking::Effort;
use crate::tools::{Shape, Tools, text};

pub(crate) const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// Reads the body of `/v1/chat/completions`.
pub(crate) fn read(app: &Shared, body: &[u8], caller: &Caller) -> Result<Job, ApiError> {
    let mut fields = Fields::parse(body)?;
    let parameters = Parameters::read(&mut fields, app, caller)?;
    let logprobs = logprobs(&mut fields)?;
    unsupported(&mut fields)?;
    let tools = Tools::of_openai(&mut fields, Shape::Nested)?;
    let effort = fields.text("reasoning_effort")?;
    let effort = Effort::read(app, "reasoning_effort", effort)?;
    let turns = turns("messages", fields.required("messages")?, &ROLES, &["text"])?;
    fields.finish()?;
    let conversation = Conversation { turns, tools, effort };
    let job = Job::of_conversation(app, &conversation, "messages", parameters)?;
    Ok(Job { logprobs, ..job })
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.flag("logprobs")?;
    let top = fields.integer("top_logprobs", 0..=MOST_LOGPROBS)?;
    match top {
        Some(_) if !wanted => {
            Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs: true"))
        }
        Some(top) => Ok(usize::try_from(top).ok()),
        None => Ok(wanted.then_some(0)),
    }
}

fn unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.unsupported(&[
        ("functions", &[json!([])]),
        ("function_call", &[json!("none"), json!("auto")]),
        ("modalities", &[json!(["text"])]),
        ("audio", &[]),
        ("prediction", &[]),
        ("verbosity", &[json!("medium")]),
        ("web_search_options", &[]),
    ])
}

/// Messages of these roles, whose contents are texts or lists of parts of these kinds.
pub(crate) fn turns(
    path: &str,
    value: Value,
    roles: &[&str],
    parts: &[&str],
) -> Result<Vec<Turn>, ApiError> {
    let Value::Array(items) = value else { return Err(wrong(path, "a list", &value)) };
    if items.is_empty() {
        return Err(ApiError::invalid(path, format!("{path} is empty: give at least one")));
    }
    let messages = items.into_iter().enumerate();
    messages.map(|(index, item)| turn(&format!("{path}[{index}]"), item, roles, parts)).collect()
}

pub(crate) fn turn(
    path: &str,
    value: Value,
    roles: &[&str],
    parts: &[&str],
) -> Result<Turn, ApiError> {
    let mut fields = Fields::of(path, value)?;
    let role = match fields.required("role")? {
        // The newer name of the system's role.
        Value::String(role) if role == "developer" && roles.contains(&"system") => "system".into(),
        Value::String(role) if roles.contains(&role.as_str()) => role,
        other => {
            let roles = roles.join(", ");
            let message = format!("{path}.role is {other}, allowed are {roles}");
            return Err(ApiError::invalid(format!("{path}.role"), message));
        }
    };
    fields.ignore(&["name"]);
    fields.unsupported(&[
        ("function_call", &[]),
        ("refusal", &[]),
        ("audio", &[]),
        ("annotations", &[json!([])]),
    ])?;
    let mut turn = Turn::new(&role, String::new());
    match role.as_str() {
        "assistant" => {
            turn.thought = fields.text("reasoning_content")?;
            turn.calls = calls(&fields.path("tool_calls"), fields.value("tool_calls"))?;
        }
        "tool" => {
            turn.answers =
                Some(text(&fields.path("tool_call_id"), fields.required("tool_call_id")?)?);
        }
        _ => {}
    }
    // Only who calls may say nothing.
    let said = match fields.value("content") {
        None if turn.calls.is_empty() => fields.required("content")?,
        None => json!(""),
        Some(said) => said,
    };
    turn.content = content(&fields.path("content"), said, parts)?;
    fields.finish()?;
    Ok(turn)
}

/// What an earlier answer called.
fn calls(path: &str, value: Option<Value>) -> Result<Vec<Call>, ApiError> {
    let items = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong(path, "a list", &other)),
    };
    let items = items.into_iter().enumerate();
    let call = |(index, item)| {
        let path = format!("{path}[{index}]");
        let mut call = Fields::of(&path, item)?;
        call.unsupported(&[("type", &[json!("function")])])?;
        call.ignore(&["index"]);
        let id = call.text("id")?.unwrap_or_default();
        let inner = format!("{path}.function");
        let mut function = Fields::of(&inner, call.required("function")?)?;
        call.finish()?;
        let name = text(&function.path("name"), function.required("name")?)?;
        let written = function.text("arguments")?.unwrap_or_default();
        let arguments = arguments(&function.path("arguments"), &written)?;
        function.finish()?;
        Ok(Call { id, name, arguments })
    };
    items.map(call).collect()
}

/// A text, or a list of parts that are texts, of these kinds.
pub(crate) fn content(path: &str, value: Value, kinds: &[&str]) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong(path, "a string or a list of parts", &other)),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        texts.push(text_part(&format!("{path}[{index}]"), part, kinds)?);
    }
    Ok(texts.join("\n"))
}

/// The text of a part of a message, of one of these kinds.
pub(crate) fn text_part(path: &str, part: Value, kinds: &[&str]) -> Result<String, ApiError> {
    let mut part = Fields::of(path, part)?;
    let kind = part.text("type")?.unwrap_or_default();
    if !kinds.contains(&kind.as_str()) {
        let (path, known) = (format!("{path}.type"), kinds.join("\", \""));
        let are = if kinds.len() == 1 { "is" } else { "are" };
        let message = format!("{path} is {kind:?}, only \"{known}\" {are} supported");
        return Err(ApiError::invalid(path, message).with_code("unsupported_parameter"));
    }
    // Hints for caches, and what earlier answers carried besides.
    part.ignore(&["cache_control", "citations", "annotations", "logprobs"]);
    let text = text(&part.path("text"), part.required("text")?)?;
    part.finish()?;
    Ok(text)
}

/// A choice of the whole answer.
pub(crate) fn choice(reply: &Reply, index: usize, choice: &Choice) -> Value {
    let mut artel = reply.gates(choice);
    if reply.job.parameters.token_experts {
        artel["token_experts"] = reply.token_gates(&choice.tokens);
    }
    json!({
        "index": index,
        "message": message(choice),
        "logprobs": log_probabilities(reply, &choice.tokens),
        "finish_reason": finish_reason(choice),
        "artel": artel,
    })
}

fn message(choice: &Choice) -> Value {
    let text = choice.text();
    let calls: Vec<Value> =
        choice.calls().map(|(id, name, arguments)| call(id, name, arguments)).collect();
    let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { json!(text) };
    let mut message = json!({"role": "assistant", "content": content});
    if let Some(thought) = choice.thought() {
        message["reasoning_content"] = json!(thought);
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// The first chunk of a choice.
pub(crate) fn first_chunk(index: usize) -> Value {
    let delta = json!({"role": "assistant", "content": ""});
    json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null})
}

/// Chunks with what became certain, and with the token where one is to be reported.
pub(crate) fn chunks(
    reply: &Reply,
    index: usize,
    choice: &Choice,
    pieces: &[Piece],
    token: Option<&Token>,
) -> Vec<Value> {
    let with_gates = reply.job.parameters.token_experts;
    let mut deltas = deltas(choice, pieces);
    let token = token.filter(|_| reply.job.logprobs.is_some() || with_gates);
    if deltas.is_empty() && token.is_some() {
        deltas.push(json!({"content": ""}));
    }
    let chunk =
        |delta| json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
    let mut chunks: Vec<Value> = deltas.into_iter().map(chunk).collect();
    if let (Some(token), Some(first)) = (token, chunks.first_mut()) {
        let tokens = std::slice::from_ref(token);
        first["logprobs"] = log_probabilities(reply, tokens);
        if with_gates {
            first["artel"] = json!({"token_experts": reply.token_gates(tokens)});
        }
    }
    chunks
}

fn deltas(choice: &Choice, pieces: &[Piece]) -> Vec<Value> {
    // The calls that begin in these pieces are the last ones of the choice.
    let begun = pieces.iter().filter(|piece| matches!(piece, Piece::Call(_))).count();
    let calls: Vec<(&str, &str, &str)> = choice.calls().collect();
    let mut place = calls.len() - begun;
    let delta = |piece: &Piece| match piece {
        Piece::Thought(text) => json!({"reasoning_content": text}),
        Piece::Text(text) => json!({"content": text}),
        Piece::Call(name) => {
            let mut begun = call(calls[place].0, name, "");
            begun["index"] = json!(place);
            place += 1;
            json!({"tool_calls": [begun]})
        }
        Piece::Arguments(text) => {
            let index = place.saturating_sub(1);
            json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
        }
    };
    pieces.iter().map(delta).collect()
}

/// The last chunk of a choice.
pub(crate) fn last_chunk(reply: &Reply, index: usize, choice: &Choice) -> Value {
    json!({
        "index": index,
        "delta": {},
        "logprobs": null,
        "finish_reason": finish_reason(choice),
        "artel": reply.gates(choice),
    })
}

fn log_probabilities(reply: &Reply, tokens: &[Token]) -> Value {
    if reply.job.logprobs.is_none() {
        return Value::Null;
    }
    let entry = |id: u32, logprob: f32| {
        let bytes = token_bytes(&reply.app, id);
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes})
    };
    let content = tokens.iter().map(|token| {
        let mut value = entry(token.id, token.logprob);
        value["top_logprobs"] = token.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
        value
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}
