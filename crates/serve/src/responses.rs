//! OpenAI's Responses API. Nothing is stored: a conversation is sent whole each time.

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

/// Kinds of parts whose text counts.
const PARTS: [&str; 3] = ["input_text", "output_text", "text"];

/// Reads the body of `/v1/responses`.
pub(crate) fn read(app: &Shared, body: &[u8], caller: &Caller) -> Result<Job, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut parameters = Parameters::of_one(&mut fields, app, caller)?;
    let max = fields.integer("max_output_tokens", 1..=i64::MAX)?;
    parameters.max_tokens = max.and_then(|tokens| usize::try_from(tokens).ok());
    parameters.stream = parameters::stream(&mut fields)?;
    let instructions = fields.text("instructions")?;
    let metadata = fields.value("metadata").unwrap_or_else(|| json!({}));
    unsupported(&mut fields)?;
    let messages = messages(instructions.clone(), fields.required("input")?)?;
    fields.finish()?;
    let prompt =
        chat_prompt(app.model(), &messages).map_err(|error| ApiError::of_engine(error, "input"))?;
    let sampling = &parameters.sampling;
    let repeated = json!({
        "instructions": instructions,
        "metadata": metadata,
        "max_output_tokens": max,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    });
    let Value::Object(repeated) = repeated else { unreachable!("it is an object") };
    let job = Job::new(vec![prompt], "input", parameters, app.limits.answer_tokens);
    Ok(Job { repeated, ..job })
}

fn unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.ignore(&parameters::IGNORED);
    fields.unsupported(&[
        ("tools", &[json!([])]),
        ("tool_choice", &[json!("none"), json!("auto")]),
        ("max_tool_calls", &[]),
        ("text", &[json!({"format": {"type": "text"}}), json!({})]),
        ("reasoning", &[json!({}), json!({"effort": "none"})]),
        ("include", &[json!([])]),
        ("previous_response_id", &[]),
        ("conversation", &[]),
        ("prompt", &[]),
        ("background", &[json!(false)]),
        ("truncation", &[json!("disabled")]),
        ("top_logprobs", &[json!(0)]),
    ])
}

fn messages(instructions: Option<String>, input: Value) -> Result<Vec<Message>, ApiError> {
    let mut messages: Vec<Message> = instructions
        .map(|content| Message { role: "system".into(), content })
        .into_iter()
        .collect();
    match input {
        Value::String(content) => messages.push(Message { role: "user".into(), content }),
        Value::Array(mut items) => {
            for (index, item) in items.iter_mut().enumerate() {
                let Value::Object(item) = item else { continue };
                let kind = item.shift_remove("type").unwrap_or_else(|| json!("message"));
                if kind != "message" {
                    let path = format!("input[{index}].type");
                    let message = format!("{path} is {kind}, only \"message\" is supported");
                    let error = ApiError::invalid(path, message);
                    return Err(error.with_code("unsupported_parameter"));
                }
                // Of answers that are sent back.
                ["id", "status"].iter().for_each(|name| {
                    item.shift_remove(*name);
                });
            }
            let roles = ["system", "user", "assistant"];
            messages.extend(chat::messages("input", Value::Array(items), &roles, &PARTS)?);
        }
        other => return Err(wrong("input", "a string or a list of messages", &other)),
    }
    Ok(messages)
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
        "parallel_tool_calls": false,
        "previous_response_id": null,
        "store": false,
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "truncation": "disabled",
        "usage": null,
    });
    for (name, value) in &reply.job.repeated {
        answer[name] = value.clone();
    }
    if choice.finish.is_some() {
        let prompt = reply.job.prompts[0].len();
        answer["output"] = json!([item(reply, choice)]);
        answer["usage"] = json!({
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": choice.prompt.reused},
            "output_tokens": choice.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
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

fn item(reply: &Reply, choice: &Choice) -> Value {
    let content = match choice.finish {
        None => json!([]),
        Some(_) => json!([part(&choice.text)]),
    };
    json!({
        "type": "message",
        "id": item_id(reply),
        "status": status(choice),
        "role": "assistant",
        "content": content,
    })
}

fn item_id(reply: &Reply) -> String {
    reply.id.replace("resp-", "msg-")
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// The first events of a stream.
pub(crate) fn first_events(reply: &Reply, choice: &Choice) -> Vec<Value> {
    let response = whole(reply, choice);
    vec![
        json!({"type": "response.created", "response": response}),
        json!({"type": "response.in_progress", "response": response}),
        json!({"type": "response.output_item.added", "output_index": 0, "item": item(reply, choice)}),
        at_part(reply, json!({"type": "response.content_part.added", "part": part("")})),
    ]
}

pub(crate) fn text_event(reply: &Reply, text: &str) -> Value {
    let event = json!({"type": "response.output_text.delta", "delta": text, "logprobs": []});
    at_part(reply, event)
}

/// The last events of a stream.
pub(crate) fn last_events(reply: &Reply, choice: &Choice) -> Vec<Value> {
    let text = &choice.text;
    let done = json!({"type": "response.output_text.done", "text": text, "logprobs": []});
    let end = match choice.finish {
        Some(Finish::Length) => "response.incomplete",
        _ => "response.completed",
    };
    vec![
        at_part(reply, done),
        at_part(reply, json!({"type": "response.content_part.done", "part": part(text)})),
        json!({"type": "response.output_item.done", "output_index": 0, "item": item(reply, choice)}),
        json!({"type": end, "response": whole(reply, choice)}),
    ]
}

/// Adds where an event's text belongs.
fn at_part(reply: &Reply, mut event: Value) -> Value {
    event["item_id"] = json!(item_id(reply));
    event["output_index"] = json!(0);
    event["content_index"] = json!(0);
    event
}
