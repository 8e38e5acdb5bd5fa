//! Tools that a model may call, as OpenAI's and Anthropic's APIs describe them.

use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::fields::{Fields, wrong};
use crate::format::json_rule;

/// Most tools of a request, as at OpenAI.
const MOST_TOOLS: usize = 128;
/// What a call stands between.
pub(crate) const OPEN: &str = "<tool_call>";
pub(crate) const CLOSE: &str = "</tool_call>";

#[derive(Clone, Debug)]
pub(crate) struct Tool {
    pub(crate) name: String,
    description: Option<String>,
    /// A JSON schema of an object.
    parameters: Value,
}

/// Which tools the model is to call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Wanted {
    /// None: the model is not even told of them.
    None,
    #[default]
    Auto,
    /// At least one.
    Any,
    /// This one.
    Named(String),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    list: Vec<Tool>,
    wanted: Wanted,
    /// At most one call.
    single: bool,
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls` of `/v1/chat/completions`, and of
    /// `/v1/responses`, where a tool's fields stand beside its type.
    pub(crate) fn of_openai(fields: &mut Fields, form: Shape) -> Result<Self, ApiError> {
        let mut tools = Tools { list: list(fields, form)?, ..Tools::default() };
        tools.single = fields.value("parallel_tool_calls").is_some_and(|value| value == false);
        tools.wanted = match fields.value("tool_choice") {
            None => Wanted::Auto,
            Some(Value::String(choice)) => match choice.as_str() {
                "none" => Wanted::None,
                "auto" => Wanted::Auto,
                "required" => Wanted::Any,
                other => return Err(unknown_choice(other, "none, auto, required or a function")),
            },
            Some(choice) => {
                let mut choice = Fields::of("tool_choice", choice)?;
                let kind = choice.text("type")?.unwrap_or_default();
                if kind != "function" {
                    return Err(unknown_choice(&kind, "none, auto, required or a function"));
                }
                let name = match form {
                    Shape::Flat | Shape::Anthropic => choice.required("name")?,
                    Shape::Nested => {
                        let function = choice.required("function")?;
                        Fields::of("tool_choice.function", function)?.required("name")?
                    }
                };
                choice.finish()?;
                Wanted::Named(text("tool_choice", name)?)
            }
        };
        tools.checked()
    }

    /// Reads `tools` and `tool_choice` of Anthropic's API.
    pub(crate) fn of_anthropic(fields: &mut Fields) -> Result<Self, ApiError> {
        let mut tools = Tools { list: list(fields, Shape::Anthropic)?, ..Tools::default() };
        if let Some(choice) = fields.value("tool_choice") {
            let mut choice = Fields::of("tool_choice", choice)?;
            tools.single = choice.flag("disable_parallel_tool_use")?;
            tools.wanted = match choice.text("type")?.unwrap_or_default().as_str() {
                "auto" => Wanted::Auto,
                "any" => Wanted::Any,
                "none" => Wanted::None,
                "tool" => Wanted::Named(text("tool_choice.name", choice.required("name")?)?),
                other => return Err(unknown_choice(other, "auto, any, tool or none")),
            };
            choice.finish()?;
        }
        tools.checked()
    }

    fn checked(self) -> Result<Self, ApiError> {
        let known = |name: &String| self.list.iter().any(|tool| tool.name == *name);
        let problem = match &self.wanted {
            Wanted::Named(name) if !known(name) => {
                format!("tool_choice names {name:?}, which is not among the tools")
            }
            Wanted::Any if self.list.is_empty() => {
                "tool_choice asks for a call, but there are no tools".to_owned()
            }
            _ => return Ok(self),
        };
        Err(ApiError::invalid("tool_choice", problem))
    }

    /// Whether the model may call any.
    pub(crate) fn are_usable(&self) -> bool {
        !self.list.is_empty() && self.wanted != Wanted::None
    }

    /// Whether the answer must be a call.
    pub(crate) fn are_forced(&self) -> bool {
        matches!(self.wanted, Wanted::Any | Wanted::Named(_))
    }

    /// As chat templates take them.
    pub(crate) fn described(&self) -> Vec<Value> {
        if !self.are_usable() {
            return Vec::new();
        }
        let describe = |tool: &Tool| {
            let mut function = json!({"name": tool.name});
            if let Some(description) = &tool.description {
                function["description"] = json!(description);
            }
            function["parameters"] = tool.parameters.clone();
            json!({"type": "function", "function": function})
        };
        self.list.iter().map(describe).collect()
    }

    /// The rules `calls` and `call` of a grammar; none where there is nothing to call.
    pub(crate) fn rules(&self) -> Option<String> {
        if !self.are_usable() {
            return None;
        }
        let wanted = |tool: &&Tool| match &self.wanted {
            Wanted::Named(name) => tool.name == *name,
            _ => true,
        };
        let mut names = Vec::new();
        let mut bodies = String::new();
        for (index, tool) in self.list.iter().filter(wanted).enumerate() {
            // Names have no characters that mean something in a regular expression.
            let name = &tool.name;
            let schema = json_rule(&tool.parameters);
            bodies += &format!(
                "call_{index}: /\\n?\\{{\"name\": \"{name}\", \"arguments\": / arguments_{index} END\n\
                 arguments_{index}: {schema}\n"
            );
            names.push(format!("call_{index}"));
        }
        let more = if self.single || matches!(self.wanted, Wanted::Named(_)) {
            String::new()
        } else {
            format!(" (\"\\n{OPEN}\" call)*")
        };
        let names = names.join(" | ");
        let close = CLOSE.replace('/', "\\/");
        Some(format!(
            "calls: \"{OPEN}\" call{more}\ncall: {names}\nEND: /\\}}\\n?{close}/\n\
             behind[lazy]: /(\\n|.)*/ \"{OPEN}\"\n{bodies}"
        ))
    }

    /// What stands for text with calls in it, where the model may choose.
    pub(crate) fn among_text(&self) -> &'static str {
        match self.single {
            true => "/(\\n|.)*/ | behind call",
            false => "(behind call)* /(\\n|.)*/",
        }
    }
}

/// How a request describes a tool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// `{"type": "function", "function": {"name": …, "parameters": …}}`
    Nested,
    /// `{"type": "function", "name": …, "parameters": …}`
    Flat,
    /// `{"name": …, "input_schema": …}`
    Anthropic,
}

fn list(fields: &mut Fields, shape: Shape) -> Result<Vec<Tool>, ApiError> {
    let items = match fields.value("tools") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong("tools", "a list", &other)),
    };
    if items.len() > MOST_TOOLS {
        let message = format!("tools has {} tools, allowed are {MOST_TOOLS}", items.len());
        return Err(ApiError::invalid("tools", message));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("tools[{index}]");
        let tool = tool(&path, item, shape)?;
        if tools.iter().any(|other| other.name == tool.name) {
            let message = format!("{path}: there are two tools named {:?}", tool.name);
            return Err(ApiError::invalid(path, message));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn tool(path: &str, value: Value, shape: Shape) -> Result<Tool, ApiError> {
    let mut fields = Fields::of(path, value)?;
    let expected = if shape == Shape::Anthropic { "custom" } else { "function" };
    let kind = fields.text("type")?;
    if kind.as_ref().is_some_and(|kind| kind != expected)
        || kind.is_none() && shape != Shape::Anthropic
    {
        let (path, found) = (format!("{path}.type"), kind.unwrap_or_default());
        let message = format!("{path} is {found:?}, only \"{expected}\" is supported");
        return Err(ApiError::invalid(path, message).with_code("unsupported_parameter"));
    }
    let mut inner = match shape {
        Shape::Nested => {
            let function = fields.required("function")?;
            let inner = Fields::of(&format!("{path}.function"), function)?;
            fields.finish()?;
            inner
        }
        Shape::Flat | Shape::Anthropic => fields,
    };
    let schema = if shape == Shape::Anthropic { "input_schema" } else { "parameters" };
    let name = text(&inner.path("name"), inner.required("name")?)?;
    check_name(&inner.path("name"), &name)?;
    let description = inner.text("description")?;
    let (path, parameters) = (inner.path(schema), inner.value(schema));
    let parameters = match parameters.unwrap_or_else(|| json!({})) {
        Value::Object(mut fields) => {
            fields.entry("type").or_insert_with(|| json!("object"));
            Value::Object(fields)
        }
        other => return Err(wrong(&path, "an object", &other)),
    };
    // Arguments are always held to the schema.
    inner.ignore(&["strict", "cache_control"]);
    inner.finish()?;
    Ok(Tool { name, description, parameters })
}

fn check_name(path: &str, name: &str) -> Result<(), ApiError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if (1..=64).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    let message = format!("{path} must be 1 to 64 letters, digits, _ and -");
    Err(ApiError::invalid(path, message))
}

pub(crate) fn text(path: &str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong(path, "a string", &other)),
    }
}

fn unknown_choice(found: &str, allowed: &str) -> ApiError {
    let message = format!("tool_choice is {found:?}, allowed is {allowed}");
    ApiError::invalid("tool_choice", message)
}
