//! Chat templates: how messages become the text that a model was trained on.
//!
//! Templates are programs that come with a model, so they are run with a limit on their steps and
//! memory and have no way to reach outside.

use std::path::Path;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::source::gguf::Gguf;
use crate::source::{read_json, read_json_if_there, read_text};

mod clock;

/// Steps that a template may take; one step also stands for 64 bytes of text made.
const FUEL: u64 = 4_000_000;
const MAX_SOURCE: usize = 1 << 20;
const NAME: &str = "chat_template";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

/// A compiled template with the names of the tokens that it may use.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

/// For models that bring no template. A base model follows headings better than unknown marks.
const PLAIN: &str = "\
{%- for message in messages -%}
### {{ message.role | title }}:
{{ message.content }}{{ eos_token if message.role == 'assistant' else '' }}

{% endfor -%}
{%- if add_generation_prompt -%}
### Assistant:
{% endif -%}
";

impl ChatTemplate {
    /// Compiles a template in the dialect of Hugging Face; `bos` and `eos` are the texts of the
    /// tokens that it calls `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// When the template is too long or does not compile.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, Error> {
        if source.len() > MAX_SOURCE {
            let (found, limit) = (source.len(), MAX_SOURCE);
            let problem = format!("{found} bytes long, above the limit of {limit}");
            return Err(Error::Template { problem });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|error| problem(&error))?;
        Ok(ChatTemplate { environment, source: source.into(), bos: bos.into(), eos: eos.into() })
    }

    /// The template for models that bring none: each message under the heading `### User:`,
    /// `### Assistant:` or `### System:`, and the end token after what the assistant said.
    pub fn plain(eos: &str) -> Self {
        Self::new(PLAIN, "", eos).expect("the plain template compiles")
    }

    /// The text of the conversation, and of the beginning of an answer if asked for.
    ///
    /// # Errors
    /// When the template refuses the messages, fails, or exceeds the limit on its steps.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        self.render_at(messages, add_generation_prompt, SystemTime::now())
    }

    /// As [`ChatTemplate::render`], at a given time, which some templates print.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_at(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String, Error> {
        self.render_context(Value::from(Serde(messages)), context! {}, add_generation_prompt, now)
    }

    /// As [`ChatTemplate::render`], of messages that may hold more than a text, such as calls of
    /// tools, and with further variables, such as `tools`.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_values(
        &self,
        messages: &[serde_json::Value],
        variables: &serde_json::Map<String, serde_json::Value>,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let messages = Value::from(Serde(messages));
        let variables = Value::from(Serde(variables));
        self.render_context(messages, variables, add_generation_prompt, SystemTime::now())
    }

    fn render_context(
        &self,
        messages: Value,
        variables: Value,
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String, Error> {
        let template = self.environment.get_template(NAME).map_err(|error| problem(&error))?;
        let strftime = move |format: &str| clock::format(now, format);
        let context = context! {
            messages,
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            strftime_now => Value::from_function(strftime),
            ..variables
        };
        template.render(context).map_err(|error| problem(&error))
    }

    /// Whether the template looks at a variable of this name.
    pub fn uses(&self, variable: &str) -> bool {
        let template = self.environment.get_template(NAME).expect("it was added by new");
        template.undeclared_variables(false).contains(variable)
    }

    /// The turns of a conversation alone, as they stand after earlier ones: without the system
    /// message, or whatever else the template puts before a first turn. The whole conversation
    /// where the template's turns depend on what is before them.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_turns(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let message = |role: &str| Message { role: role.into(), content: "?".into() };
        let mut turns = vec![message("user"), message("assistant")];
        let earlier = self.render(&turns, false)?;
        turns.extend_from_slice(messages);
        match self.render(&turns, add_generation_prompt)?.strip_prefix(&earlier) {
            Some(later) if !later.is_empty() => Ok(later.into()),
            _ => self.render(messages, add_generation_prompt),
        }
    }

    /// The template's text, as the model brought it.
    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn bos(&self) -> &str {
        &self.bos
    }

    pub fn eos(&self) -> &str {
        &self.eos
    }
}

/// From `chat_template.jinja` or `tokenizer_config.json`; the plain one where neither has any.
pub(crate) fn from_huggingface(folder: &Path) -> Result<ChatTemplate, Error> {
    let config = read_json_if_there(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let token = |key: &str| {
        let value = config.get(key);
        let text = value.and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()));
        text.unwrap_or_default().to_owned()
    };
    let (bos, eos) = (token("bos_token"), token("eos_token"));
    let file = folder.join("chat_template.jinja");
    if file.exists() {
        return ChatTemplate::new(&read_text(&file)?, &bos, &eos);
    }
    let file = folder.join("chat_template.json");
    let legacy = if file.exists() { read_json(&file)? } else { Default::default() };
    let source = match config.get("chat_template").or_else(|| legacy.get("chat_template")) {
        Some(serde_json::Value::Array(named)) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str()),
        Some(value) => value.as_str(),
        None => None,
    };
    match source {
        Some(source) => ChatTemplate::new(source, &bos, &eos),
        None => Ok(ChatTemplate::plain(&eos)),
    }
}

/// From `tokenizer.chat_template`; the plain one where there is none.
pub(crate) fn from_gguf(file: &Gguf) -> Result<ChatTemplate, Error> {
    let tokens = file.get("tokenizer.ggml.tokens").and_then(|t| t.texts()).unwrap_or_default();
    let token = |which: &str| {
        let id = file.get(&format!("tokenizer.ggml.{which}_token_id")).and_then(|v| v.integer());
        let token = id.and_then(|id| usize::try_from(id).ok()).and_then(|id| tokens.get(id));
        token.map_or("", String::as_str)
    };
    match file.get("tokenizer.chat_template") {
        Some(_) => {
            ChatTemplate::new(file.text("tokenizer.chat_template")?, token("bos"), token("eos"))
        }
        None => Ok(ChatTemplate::plain(token("eos"))),
    }
}

fn problem(error: &minijinja::Error) -> Error {
    let problem = match error.kind() {
        ErrorKind::OutOfFuel => format!("stopped after {FUEL} steps; it does not seem to end"),
        _ => error.to_string(),
    };
    Error::Template { problem }
}

/// `{% generation %}` marks what the assistant says, for training; it leaves no trace in the text.
fn without_generation_marks(source: &str) -> String {
    let mut out = source.to_owned();
    for (mark, instead) in [("generation", "if true"), ("endgeneration", "endif")] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            let mark = format!("{open} {mark} {close}");
            out = out.replace(&mark, &format!("{open} {instead} {close}"));
        }
    }
    out
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps`, which unlike Jinja's own filter escapes no HTML.
fn to_json(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let failed = |error: serde_json::Error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}"))
    };
    let indent: Option<usize> = options.get("indent")?;
    // Accepted for the templates that name Python's other options; none changes plain text.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let mut out = vec![];
    match indent {
        Some(width) => {
            let spaces = vec![b' '; width.min(16)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
            value.serialize(&mut serializer).map_err(failed)?;
        }
        None => {
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonFormatter);
            value.serialize(&mut serializer).map_err(failed)?;
        }
    }
    Ok(Value::from(String::from_utf8_lossy(&out).into_owned()))
}

/// Writes a space after every comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
