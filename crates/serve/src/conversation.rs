//! What was said so far, in the form that chat templates take.

use engine::prompt_of;
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::thinking::Effort;
use crate::tools::{CLOSE, OPEN, Tools};

/// A message of any API.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turn {
    /// `system`, `user`, `assistant` or `tool`.
    pub(crate) role: String,
    pub(crate) content: String,
    /// What the assistant thought before it spoke.
    pub(crate) thought: Option<String>,
    /// What the assistant called.
    pub(crate) calls: Vec<Call>,
    /// The id of the call that a tool's message answers.
    pub(crate) answers: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// An object.
    pub(crate) arguments: Value,
}

impl Turn {
    pub(crate) fn new(role: &str, content: String) -> Self {
        Turn { role: role.into(), content, ..Turn::default() }
    }
}

/// The arguments of a call, which OpenAI's API writes as a text.
pub(crate) fn arguments(path: &str, text: &str) -> Result<Value, ApiError> {
    match serde_json::from_str(text) {
        Ok(arguments @ Value::Object(_)) => Ok(arguments),
        // Calls without arguments come back so from some clients.
        _ if text.is_empty() => Ok(json!({})),
        _ => Err(ApiError::invalid(path, format!("{path} is no JSON object"))),
    }
}

/// A conversation with what the model is told besides.
pub(crate) struct Conversation {
    pub(crate) turns: Vec<Turn>,
    pub(crate) tools: Tools,
    pub(crate) effort: Effort,
}

impl Conversation {
    pub(crate) fn new(turns: Vec<Turn>) -> Self {
        Conversation { turns, tools: Tools::default(), effort: Effort::Unsaid }
    }

    /// The prompt's tokens; `field` holds the messages, for errors.
    pub(crate) fn prompt(&self, app: &Shared, field: &str) -> Result<Vec<u32>, ApiError> {
        let (messages, variables) = self.rendered(app);
        prompt_of(app.model(), &messages, &variables)
            .map_err(|error| ApiError::of_engine(error, field))
    }

    /// The prompt's text.
    pub(crate) fn text(&self, app: &Shared, generation: bool) -> Result<String, ApiError> {
        let (messages, variables) = self.rendered(app);
        let text = app.model().template.render_values(&messages, &variables, generation);
        text.map_err(|error| ApiError::invalid("messages", error.to_string()))
    }

    fn rendered(&self, app: &Shared) -> (Vec<Value>, Map<String, Value>) {
        let mut variables = Map::new();
        self.effort.add_to(&mut variables);
        let tools = self.tools.described();
        if template_calls(app) {
            if !tools.is_empty() {
                variables.insert("tools".into(), tools.into());
            }
            return (self.turns.iter().map(native).collect(), variables);
        }
        (in_text(&self.turns, &tools), variables)
    }
}

/// Whether the template writes tools and calls itself, in the form that [`crate::pieces`] reads:
/// JSON between `<tool_call>` and `</tool_call>`.
fn template_calls(app: &Shared) -> bool {
    let template = &app.model().template;
    let source = template.source();
    template.uses("tools")
        && source.contains(OPEN)
        && !source.contains("<arg_key>")
        && !source.contains("<function=")
}

/// As templates take it that know tools.
fn native(turn: &Turn) -> Value {
    let mut message = json!({"role": turn.role, "content": turn.content});
    if let Some(thought) = &turn.thought {
        message["reasoning_content"] = json!(thought);
    }
    if !turn.calls.is_empty() {
        let calls = turn.calls.iter().map(|call| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        });
        message["tool_calls"] = calls.collect();
    }
    if let Some(id) = &turn.answers {
        message["tool_call_id"] = json!(id);
    }
    message
}

/// For templates that know nothing of tools: what they are stands in the system's message, calls
/// in the assistant's, and what tools answered in the user's.
fn in_text(turns: &[Turn], tools: &[Value]) -> Vec<Value> {
    let mut messages: Vec<(String, String)> = Vec::new();
    for turn in turns {
        let mut content = turn.content.clone();
        for call in &turn.calls {
            let (name, arguments) = (json!(call.name), &call.arguments);
            let gap = if content.is_empty() { "" } else { "\n" };
            let body = format!("{{\"name\": {name}, \"arguments\": {arguments}}}");
            content += &format!("{gap}{OPEN}\n{body}\n{CLOSE}");
        }
        if turn.role != "tool" {
            messages.push((turn.role.clone(), content));
            continue;
        }
        let answer = format!("<tool_response>\n{content}\n</tool_response>");
        match messages.last_mut() {
            // Several answers are one message: templates want roles to take turns.
            Some((role, last)) if role == "user" && last.ends_with("</tool_response>") => {
                *last += &format!("\n{answer}");
            }
            _ => messages.push(("user".into(), answer)),
        }
    }
    if !tools.is_empty() {
        let explained = explained(tools);
        match messages.first_mut() {
            Some((role, content)) if role == "system" => *content += &format!("\n\n{explained}"),
            _ => messages.insert(0, ("system".into(), explained)),
        }
    }
    let message = |(role, content)| json!({"role": role, "content": content});
    messages.into_iter().map(message).collect()
}

fn explained(tools: &[Value]) -> String {
    let tools: Vec<String> = tools.iter().map(Value::to_string).collect();
    format!(
        "You may call tools, described here one to a line:\n<tools>\n{}\n</tools>\n\
         To call one, write:\n{OPEN}\n{{\"name\": \"NAME\", \"arguments\": {{}}}}\n{CLOSE}\n\
         Its answer follows between <tool_response> and </tool_response>.",
        tools.join("\n")
    )
}
