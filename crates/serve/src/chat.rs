use engine::{Token, chat_prompt};
use model::Message;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::choice::Choice;
use crate::fields::{Fields, wrong};
use crate::generation::Job;
use crate::keys::Caller;
use crate::parameters::{MOST_LOGPROBS, Parameters};
use crate::reply::{Reply, finish_reason, token_bytes};

pub(crate) const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// Reads the body of `/v1/chat/completions`.
pub(crate) fn read(app: &Shared, body: &[u8], caller: &Caller) -> Result<Job, ApiError> {
    let mut fields = Fields::parse(body)?;
    let parameters = Parameters::read(&mut fields, app, caller)?;
    let logprobs = logprobs(&mut fields)?;
    unsupported(&mut fields)?;
    let messages = messages("messages", fields.required("messages")?, &ROLES, &["text"])?;
    fields.finish()?;
    let prompt = chat_prompt(app.model(), &messages)
        .map_err(|error| ApiError::of_engine(error, "messages"))?;
    let job = Job::new(vec![prompt], "messages", parameters, app.limits.answer_tokens);
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
        ("tools", &[json!([])]),
        ("tool_choice", &[json!("none"), json!("auto")]),
        ("functions", &[json!([])]),
        ("function_call", &[json!("none"), json!("auto")]),
        ("modalities", &[json!(["text"])]),
        ("audio", &[]),
        ("prediction", &[]),
        ("reasoning_effort", &[json!("none")]),
        ("verbosity", &[json!("medium")]),
        ("web_search_options", &[]),
    ])
}

/// Messages of these roles, whose contents are texts or lists of parts of these kinds.
pub(crate) fn messages(
    path: &str,
    value: Value,
    roles: &[&str],
    parts: &[&str],
) -> Result<Vec<Message>, ApiError> {
    let Value::Array(items) = value else { return Err(wrong(path, "a list", &value)) };
    if items.is_empty() {
        return Err(ApiError::invalid(path, format!("{path} is empty: give at least one")));
    }
    let messages = items.into_iter().enumerate();
    messages.map(|(index, item)| message(&format!("{path}[{index}]"), item, roles, parts)).collect()
}

fn message(path: &str, value: Value, roles: &[&str], parts: &[&str]) -> Result<Message, ApiError> {
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
        ("tool_calls", &[json!([])]),
        ("function_call", &[]),
        ("refusal", &[]),
        ("audio", &[]),
        ("annotations", &[json!([])]),
    ])?;
    let content = content(&format!("{path}.content"), fields.required("content")?, parts)?;
    fields.finish()?;
    Ok(Message { role, content })
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
        let path = format!("{path}[{index}]");
        let mut part = Fields::of(&path, part)?;
        let kind = part.text("type")?.unwrap_or_default();
        if !kinds.contains(&kind.as_str()) {
            let (path, known) = (format!("{path}.type"), kinds.join("\", \""));
            let are = if kinds.len() == 1 { "is" } else { "are" };
            let message = format!("{path} is {kind:?}, only \"{known}\" {are} supported");
            return Err(ApiError::invalid(path, message).with_code("unsupported_parameter"));
        }
        // Hints for caches, and what earlier answers carried besides.
        part.ignore(&["cache_control", "citations", "annotations", "logprobs"]);
        match part.required("text")? {
            Value::String(text) => texts.push(text),
            other => return Err(wrong(&format!("{path}.text"), "a string", &other)),
        }
        part.finish()?;
    }
    Ok(texts.join("\n"))
}

/// A choice of the whole answer.
pub(crate) fn choice(reply: &Reply, index: usize, choice: &Choice) -> Value {
    let mut artel = reply.gates(choice);
    if reply.job.parameters.token_experts {
        artel["token_experts"] = reply.token_gates(&choice.tokens);
    }
    json!({
        "index": index,
        "message": {"role": "assistant", "content": choice.text},
        "logprobs": log_probabilities(reply, &choice.tokens),
        "finish_reason": finish_reason(choice.finish),
        "artel": artel,
    })
}

/// The first chunk of a choice.
pub(crate) fn first_chunk(index: usize) -> Value {
    let delta = json!({"role": "assistant", "content": ""});
    json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null})
}

/// A chunk with a token; none where nothing shows yet.
pub(crate) fn token_chunk(reply: &Reply, index: usize, token: &Token) -> Option<Value> {
    let with_gates = reply.job.parameters.token_experts;
    if token.text.is_empty() && reply.job.logprobs.is_none() && !with_gates {
        return None;
    }
    let tokens = std::slice::from_ref(token);
    let mut chunk = json!({
        "index": index,
        "delta": {"content": token.text},
        "logprobs": log_probabilities(reply, tokens),
        "finish_reason": null,
    });
    if with_gates {
        chunk["artel"] = json!({"token_experts": reply.token_gates(tokens)});
    }
    Some(chunk)
}

/// The last chunk of a choice; `rest` is text that was withheld.
pub(crate) fn last_chunk(reply: &Reply, index: usize, choice: &Choice, rest: &str) -> Value {
    let delta = if rest.is_empty() { json!({}) } else { json!({"content": rest}) };
    json!({
        "index": index,
        "delta": delta,
        "logprobs": null,
        "finish_reason": finish_reason(choice.finish),
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
