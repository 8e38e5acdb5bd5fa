//! Anthropic's Messages API.

use engine::{Finish, chat_prompt};
use model::Message;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::chat;
use crate::choice::Choice;
use crate::fields::{Fields, wrong};
use crate::generation::Job;
use crate::keys::Caller;
use crate::parameters::{self, Parameters};
use crate::reply::Reply;

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
    let prompt = prompt(app, &mut fields)?;
    fields.finish()?;
    Ok(Job::new(vec![prompt], "messages", parameters, app.limits.answer_tokens))
}

/// What `/v1/messages/count_tokens` answers.
pub(crate) fn count(app: &Shared, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    parameters::check_model(&mut fields, app)?;
    let prompt = prompt(app, &mut fields)?;
    fields.finish()?;
    Ok(json!({"input_tokens": prompt.len()}))
}

/// The prompt of `system` and `messages`. Reads what stands beside them in both requests.
fn prompt(app: &Shared, fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    fields.ignore(&["metadata", "service_tier", "inference_geo"]);
    fields.unsupported(&[
        ("tools", &[json!([])]),
        ("tool_choice", &[json!({"type": "none"}), json!({"type": "auto"})]),
        ("thinking", &[json!({"type": "disabled"})]),
        ("output_config", &[json!({})]),
        ("output_format", &[]),
        ("container", &[]),
        ("context_management", &[]),
        ("mcp_servers", &[json!([])]),
    ])?;
    let system = fields.value("system");
    let mut messages: Vec<Message> = Vec::new();
    if let Some(system) = system {
        let content = chat::content("system", system, &["text"])?;
        messages.push(Message { role: "system".into(), content });
    }
    let list = fields.required("messages")?;
    messages.extend(chat::messages("messages", list, &["user", "assistant"], &["text"])?);
    chat_prompt(app.model(), &messages).map_err(|error| ApiError::of_engine(error, "messages"))
}

/// The whole answer.
pub(crate) fn whole(reply: &Reply, choice: &Choice) -> Value {
    let mut answer = begun(reply, choice);
    answer["content"] = json!([{"type": "text", "text": choice.text}]);
    answer["usage"]["output_tokens"] = json!(choice.completion_tokens);
    set_end(&mut answer, reply, choice);
    answer["artel"] = reply.all_gates(std::slice::from_ref(choice));
    answer
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
        Some(Finish::Stop) => (json!("end_turn"), Value::Null),
        Some(Finish::StopString(index)) => {
            (json!("stop_sequence"), json!(reply.job.parameters.stop[index]))
        }
        Some(Finish::Length) => (json!("max_tokens"), Value::Null),
    };
    to["stop_reason"] = reason;
    to["stop_sequence"] = sequence;
}

/// The first events of a stream.
pub(crate) fn first_events(reply: &Reply, choice: &Choice) -> Vec<Value> {
    let block = json!({"type": "text", "text": ""});
    vec![
        json!({"type": "message_start", "message": begun(reply, choice)}),
        json!({"type": "content_block_start", "index": 0, "content_block": block}),
    ]
}

pub(crate) fn text_event(text: &str) -> Value {
    let delta = json!({"type": "text_delta", "text": text});
    json!({"type": "content_block_delta", "index": 0, "delta": delta})
}

/// The last events of a stream.
pub(crate) fn last_events(reply: &Reply, choice: &Choice) -> Vec<Value> {
    let mut delta = json!({});
    set_end(&mut delta, reply, choice);
    let artel = reply.all_gates(std::slice::from_ref(choice));
    let usage = json!({"output_tokens": choice.completion_tokens});
    vec![
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": delta, "usage": usage, "artel": artel}),
        json!({"type": "message_stop"}),
    ]
}
