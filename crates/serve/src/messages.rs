//! Anthropic's Messages API.

use engine::Finish;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::chat;
use crate::choice::{Choice, Part};
use crate::conversation::{Call, Conversation, Turn};
use crate::fields::{Fields, wrong};
use crate::format::Format;
use crate::generation::Job;
use crate::keys::Caller;
use crate::parameters::{self, Parameters};
use crate::pieces::Piece;
use crate::reply::Reply;
use crate::stream::Named;
use crate::thinking::Effort;
use crate::tools::{Tools, text};

/// Reads the body of `/v1/messages`.
pub(crate) fn read(app: &Shared, body: &[u8], caller: &Caller) -> Result<Job, ApiError> {
    let mut fields = Fields::parse(body)?;
    let max_tokens = fields.required("max_tokens")?;
    let Some(max_tokens) = max_tokens.as_u64().filter(|tokens| *tokens > 0) else {
        return Err(wrong("max_tokens", "a whole number above 0", &max_tokens));
    };
    let mut parameters = Parameters::of_one(&mut fields, app, caller)?;
    parameters.max_tokens = usize::try_from(max_tokens).ok();
    parameters.sampling.top_k = parameters::top_k(&mut fields)?;
    parameters.stop = fields.texts("stop_sequences")?.unwrap_or_default();
    parameters.stream = parameters::stream(&mut fields)?;
    parameters.format = format(&mut fields)?;
    let conversation = conversation(app, &mut fields)?;
    fields.finish()?;
    Job::of_conversation(app, &conversation, "messages", parameters)
}

fn format(fields: &mut Fields) -> Result<Format, ApiError> {
    let older = fields.value("output_format");
    let newer = match fields.value("output_config") {
        None => None,
        Some(config) => {
            let mut config = Fields::of("output_config", config)?;
            let format = config.value("format");
            config.unsupported(&[("effort", &[])])?;
            config.finish()?;
            format
        }
    };
    match (older, newer) {
        (Some(_), Some(_)) => {
            let message = "output_format and output_config.format are both given";
            Err(ApiError::invalid("output_format", message))
        }
        (Some(format), None) => Format::flat("output_format", format),
        (None, Some(format)) => Format::flat("output_config.format", format),
        (None, None) => Ok(Format::Free),
    }
}

/// What `/v1/messages/count_tokens` answers.
pub(crate) fn count(app: &Shared, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    parameters::check_model(&mut fields, app)?;
    let conversation = conversation(app, &mut fields)?;
    fields.finish()?;
    Ok(json!({"input_tokens": conversation.prompt(app, "messages")?.len()}))
}

/// What both requests hold: `system`, `messages`, `tools` and what stands beside them.
fn conversation(app: &Shared, fields: &mut Fields) -> Result<Conversation, ApiError> {
    fields.ignore(&["metadata", "service_tier", "inference_geo"]);
    fields.unsupported(&[
        ("container", &[]),
        ("context_management", &[]),
        ("mcp_servers", &[json!([])]),
    ])?;
    let tools = Tools::of_anthropic(fields)?;
    let effort = effort(app, fields)?;
    let mut turns = Vec::new();
    if let Some(system) = fields.value("system") {
        turns.push(Turn::new("system", chat::content("system", system, &["text"])?));
    }
    let items = match fields.required("messages")? {
        Value::Array(items) if items.is_empty() => {
            return Err(ApiError::invalid("messages", "messages is empty: give at least one"));
        }
        Value::Array(items) => items,
        other => return Err(wrong("messages", "a list", &other)),
    };
    for (index, item) in items.into_iter().enumerate() {
        add_turns(&format!("messages[{index}]"), item, &mut turns)?;
    }
    Ok(Conversation { turns, tools, effort })
}

/// A budget of thoughts cannot be kept, so it is refused.
fn effort(app: &Shared, fields: &mut Fields) -> Result<Effort, ApiError> {
    let Some(thinking) = fields.value("thinking") else { return Ok(Effort::Unsaid) };
    let mut thinking = Fields::of("thinking", thinking)?;
    let kind = thinking.text("type")?.unwrap_or_default();
    let effort = match kind.as_str() {
        "adaptive" => Ok(Effort::Unsaid),
        "disabled" => Effort::read(app, "thinking.type", Some("none".into())),
        _ => {
            let message =
                format!("thinking.type is {kind:?}, allowed are \"disabled\" and \"adaptive\"");
            Err(ApiError::invalid("thinking.type", message).with_code("unsupported_parameter"))
        }
    };
    thinking.ignore(&["display"]);
    thinking.finish()?;
    effort
}

/// The turns of a message: what tools answered stands in the user's, each a turn of its own.
fn add_turns(path: &str, value: Value, turns: &mut Vec<Turn>) -> Result<(), ApiError> {
    let mut fields = Fields::of(path, value)?;
    let role = text(&fields.path("role"), fields.required("role")?)?;
    if !["user", "assistant"].contains(&role.as_str()) {
        let path = fields.path("role");
        let message = format!("{path} is {role:?}, allowed are user and assistant");
        return Err(ApiError::invalid(path, message));
    }
    let (path, content) = (fields.path("content"), fields.required("content")?);
    fields.finish()?;
    let mut turn = Turn::new(&role, String::new());
    let Value::Array(blocks) = content else {
        turn.content = chat::content(&path, content, &["text"])?;
        turns.push(turn);
        return Ok(());
    };
    let mut texts = Vec::new();
    for (index, block) in blocks.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        match (role.as_str(), block["type"].as_str()) {
            ("assistant", Some("tool_use")) => turn.calls.push(call(&path, block)?),
            ("assistant", Some("thinking")) => {
                let mut block = Fields::of(&path, block)?;
                block.ignore(&["type", "signature"]);
                turn.thought = block.text("thinking")?;
                block.finish()?;
            }
            ("user", Some("tool_result")) => turns.push(result(&path, block)?),
            _ => texts.push(chat::text_part(&path, block, &["text"])?),
        }
    }
    turn.content = texts.join("\n");
    if !turn.content.is_empty() || turn.role == "assistant" {
        turns.push(turn);
    }
    Ok(())
}

fn call(path: &str, block: Value) -> Result<Call, ApiError> {
    let mut block = Fields::of(path, block)?;
    block.ignore(&["type", "cache_control", "caller"]);
    let id = text(&block.path("id"), block.required("id")?)?;
    let name = text(&block.path("name"), block.required("name")?)?;
    let (path, arguments) = (block.path("input"), block.required("input")?);
    if !arguments.is_object() {
        return Err(wrong(&path, "an object", &arguments));
    }
    block.finish()?;
    Ok(Call { id, name, arguments })
}

fn result(path: &str, block: Value) -> Result<Turn, ApiError> {
    let mut block = Fields::of(path, block)?;
    // A tool that failed says so in its text.
    block.ignore(&["type", "cache_control", "is_error"]);
    let id = text(&block.path("tool_use_id"), block.required("tool_use_id")?)?;
    let content = block.value("content").unwrap_or_else(|| json!(""));
    let content = chat::content(&block.path("content"), content, &["text"])?;
    block.finish()?;
    Ok(Turn { answers: Some(id), ..Turn::new("tool", content) })
}

/// The whole answer.
pub(crate) fn whole(reply: &Reply, choice: &Choice) -> Value {
    let mut answer = begun(reply, choice);
    answer["content"] = choice.parts.iter().map(block).collect();
    answer["usage"]["output_tokens"] = json!(choice.completion_tokens);
    set_end(&mut answer, reply, choice);
    answer["artel"] = reply.all_gates(std::slice::from_ref(choice));
    answer
}

fn block(part: &Part) -> Value {
    match part {
        // Nothing is signed: what comes back is read as it stands.
        Part::Thought(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
        Part::Text(text) => json!({"type": "text", "text": text}),
        Part::Call { id, name, arguments } => {
            // Arguments that were cut at the length limit are no JSON.
            let input: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
            json!({"type": "tool_use", "id": id, "name": name, "input": input})
        }
    }
}

/// What is known when the prompt has been read.
fn begun(reply: &Reply, choice: &Choice) -> Value {
    // Tokens that were kept count apart from those that were read.
    let (prompt, reused) = (reply.job.prompts[0].len(), choice.prompt.reused);
    json!({
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": reply.app.model_name,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": {
            "input_tokens": prompt - reused,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": reused,
            "output_tokens": 0,
        },
    })
}

fn set_end(to: &mut Value, reply: &Reply, choice: &Choice) {
    let (reason, sequence) = match choice.finish {
        None => (Value::Null, Value::Null),
        Some(Finish::Stop) if choice.calls().next().is_some() => (json!("tool_use"), Value::Null),
        Some(Finish::Stop) => (json!("end_turn"), Value::Null),
        Some(Finish::StopString(index)) => {
            (json!("stop_sequence"), json!(reply.job.parameters.stop[index]))
        }
        Some(Finish::Length) => (json!("max_tokens"), Value::Null),
    };
    to["stop_reason"] = reason;
    to["stop_sequence"] = sequence;
}

/// The events of a stream.
pub(crate) struct Events;

impl Named for Events {
    fn first(&self, reply: &Reply, choice: &Choice) -> Vec<Value> {
        vec![json!({"type": "message_start", "message": begun(reply, choice)})]
    }

    fn begin(&self, _: &Reply, choice: &Choice, part: usize) -> Vec<Value> {
        let empty = match &choice.parts[part] {
            Part::Thought(_) => Part::Thought(String::new()),
            Part::Text(_) => Part::Text(String::new()),
            Part::Call { id, name, .. } => {
                let arguments = String::new();
                Part::Call { id: id.clone(), name: name.clone(), arguments }
            }
        };
        let block = block(&empty);
        vec![json!({"type": "content_block_start", "index": part, "content_block": block})]
    }

    fn more(&self, _: &Reply, _: &Choice, part: usize, piece: &Piece) -> Option<Value> {
        let delta = match piece {
            Piece::Thought(text) => json!({"type": "thinking_delta", "thinking": text}),
            Piece::Text(text) => json!({"type": "text_delta", "text": text}),
            Piece::Arguments(text) => json!({"type": "input_json_delta", "partial_json": text}),
            Piece::Call(_) => return None,
        };
        Some(json!({"type": "content_block_delta", "index": part, "delta": delta}))
    }

    fn end(&self, _: &Reply, _: &Choice, part: usize) -> Vec<Value> {
        vec![json!({"type": "content_block_stop", "index": part})]
    }

    fn last(&self, reply: &Reply, choice: &Choice) -> Vec<Value> {
        let mut delta = json!({});
        set_end(&mut delta, reply, choice);
        let artel = reply.all_gates(std::slice::from_ref(choice));
        let usage = json!({"output_tokens": choice.completion_tokens});
        vec![
            json!({"type": "message_delta", "delta": delta, "usage": usage, "artel": artel}),
            json!({"type": "message_stop"}),
        ]
    }
}
