//! What the text of an answer must be, and the grammar that holds the model to it.

use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::fields::{Fields, wrong};
use crate::thinking::Thoughts;
use crate::tools::Tools;

/// White space that may be between the parts of a JSON text, at most once: a space, or a line's end
/// with its indentation. Without a bound small models write nothing else.
const SPACE: &str = r" |\n[ \t]{0,20}";

/// What the text of an answer must be.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Format {
    #[default]
    Free,
    /// Described by a JSON schema, in the field of this name.
    Json(&'static str, Value),
    Regex(&'static str, String),
    /// One of these texts.
    Choice(&'static str, Vec<String>),
    /// Described by a grammar in llguidance's dialect of Lark.
    Lark(&'static str, String),
}

impl Format {
    /// Reads `response_format`, and vLLM's `structured_outputs` and `guided_…`. One may be given.
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let mut found = vec![response_format(fields)?];
        if let Some(value) = fields.value("structured_outputs") {
            let mut inner = Fields::of("structured_outputs", value)?;
            found.extend(guided(&mut inner, ["json", "regex", "choice", "grammar"])?);
            if inner.flag("json_object")? {
                found.push(Format::Json("structured_outputs", json!({"type": "object"})));
            }
            inner.finish()?;
        }
        let names = ["guided_json", "guided_regex", "guided_choice", "guided_grammar"];
        found.extend(guided(fields, names)?);
        found.retain(|format| *format != Format::Free);
        match found.as_slice() {
            [] => Ok(Format::Free),
            [_] => Ok(found.swap_remove(0)),
            [first, second, ..] => {
                let message = format!("{} and {} are both given", first.field(), second.field());
                Err(ApiError::invalid(second.field(), message))
            }
        }
    }

    /// Reads the format of `/v1/responses` and of Anthropic's API: the schema stands beside the
    /// type.
    pub(crate) fn flat(field: &'static str, value: Value) -> Result<Self, ApiError> {
        let mut format = Fields::of(field, value)?;
        let read = match format.text("type")?.as_deref() {
            Some("text") => Format::Free,
            Some("json_object") => Format::Json(field, json!({"type": "object"})),
            Some("json_schema") => schema(field, &mut format)?,
            other => return Err(unknown(field, other)),
        };
        format.finish()?;
        Ok(read)
    }

    /// The field that asks for it.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Format::Free => "response_format",
            Format::Json(field, _)
            | Format::Regex(field, _)
            | Format::Choice(field, _)
            | Format::Lark(field, _) => field,
        }
    }

    /// The rule `text` of a grammar; none where the text is free.
    fn rule(&self) -> Option<String> {
        Some(match self {
            Format::Free => return None,
            Format::Json(_, schema) => format!("text: {}\n", json_rule(schema)),
            Format::Regex(_, regex) => format!("text: {}\n", regex_literal(regex)),
            Format::Choice(_, choices) => {
                let texts: Vec<String> =
                    choices.iter().map(|text| json!(text).to_string()).collect();
                format!("text: {}\n", texts.join(" | "))
            }
            Format::Lark(_, grammar) => format!("text: %lark {{\n{grammar}\n}}\n"),
        })
    }
}

/// The grammar of a whole answer; none where everything is allowed.
pub(crate) fn grammar(format: &Format, tools: &Tools, thoughts: Thoughts) -> Option<String> {
    let (text, calls) = (format.rule(), tools.rules());
    let answer = match (&text, &calls) {
        (None, None) => return None,
        (Some(text), None) => format!("answer: text\n{text}"),
        (_, Some(calls)) if tools.are_forced() => format!("answer: calls\n{calls}"),
        (Some(text), Some(calls)) => format!("answer: text | calls\n{text}{calls}"),
        (None, Some(calls)) => format!("answer: {}\n{calls}", tools.among_text()),
    };
    // Thoughts come before whatever the grammar describes.
    let behind = "thought answer | thought /[ \\n]{1,4}/ answer";
    Some(match thoughts {
        Thoughts::Never => format!("start: answer\n{answer}"),
        Thoughts::Begun => {
            format!("start: {behind}\nthought[lazy]: /(\\n|.)*/ \"</think>\"\n{answer}")
        }
        Thoughts::Possible => format!(
            "start: {behind} | answer\n\
             thought[lazy]: /<think>(\\n|.)*/ \"</think>\"\n{answer}"
        ),
    })
}

/// What stands for a JSON text of this schema.
pub(crate) fn json_rule(schema: &Value) -> String {
    let mut schema = schema.clone();
    match &mut schema {
        Value::Object(fields) if !fields.contains_key("x-guidance") => {
            fields.insert("x-guidance".into(), json!({"whitespace_pattern": SPACE}));
        }
        // A schema may be true: anything.
        Value::Bool(true) => schema = json!({"x-guidance": {"whitespace_pattern": SPACE}}),
        _ => {}
    }
    format!("%json {schema}")
}

fn regex_literal(regex: &str) -> String {
    let mut literal = String::from("/");
    let mut escaped = false;
    for character in regex.chars() {
        match character {
            '\n' => literal.push_str("\\n"),
            '/' if !escaped => literal.push_str("\\/"),
            other => literal.push(other),
        }
        escaped = character == '\\' && !escaped;
    }
    literal.push('/');
    literal
}

fn response_format(fields: &mut Fields) -> Result<Format, ApiError> {
    const FIELD: &str = "response_format";
    let Some(value) = fields.value(FIELD) else { return Ok(Format::Free) };
    let mut format = Fields::of(FIELD, value)?;
    let read = match format.text("type")?.as_deref() {
        Some("text") => Format::Free,
        Some("json_object") => Format::Json(FIELD, json!({"type": "object"})),
        Some("json_schema") => {
            let mut named =
                Fields::of("response_format.json_schema", format.required("json_schema")?)?;
            let read = schema(FIELD, &mut named)?;
            named.finish()?;
            read
        }
        other => return Err(unknown(FIELD, other)),
    };
    format.finish()?;
    Ok(read)
}

/// The schema of a format. It is held to whether `strict` or not.
fn schema(field: &'static str, fields: &mut Fields) -> Result<Format, ApiError> {
    fields.ignore(&["name", "description", "strict"]);
    let path = fields.path("schema");
    match fields.required("schema")? {
        schema @ Value::Object(_) => Ok(Format::Json(field, schema)),
        other => Err(wrong(&path, "an object", &other)),
    }
}

fn unknown(field: &str, kind: Option<&str>) -> ApiError {
    let path = format!("{field}.type");
    let found = kind.map_or("missing".into(), |kind| format!("{kind:?}"));
    let message = format!("{path} is {found}, allowed are text, json_object and json_schema");
    ApiError::invalid(path, message)
}

/// vLLM's fields, by these names.
fn guided(fields: &mut Fields, names: [&'static str; 4]) -> Result<Vec<Format>, ApiError> {
    let [json, regex, choice, grammar] = names;
    let mut found = Vec::new();
    if let Some(schema) = fields.value(json) {
        let path = fields.path(json);
        // vLLM takes it as a text, too.
        let schema = match schema {
            Value::String(text) => serde_json::from_str(&text)
                .map_err(|error| ApiError::invalid(&path, format!("{path} is no JSON: {error}")))?,
            other => other,
        };
        if !schema.is_object() {
            return Err(wrong(&path, "a JSON schema", &schema));
        }
        found.push(Format::Json(json, schema));
    }
    if let Some(text) = fields.text(regex)? {
        found.push(Format::Regex(regex, text));
    }
    if let Some(choices) = fields.texts(choice)? {
        if choices.is_empty() {
            let path = fields.path(choice);
            return Err(ApiError::invalid(&path, format!("{path} is empty: give at least one")));
        }
        found.push(Format::Choice(choice, choices));
    }
    if let Some(text) = fields.text(grammar)? {
        found.push(Format::Lark(grammar, text));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_and_line_ends_stay_within_the_literal() {
        for (regex, literal) in [("a/b", r"/a\/b/"), (r"a\/b", r"/a\/b/"), (r"\\/", r"/\\\//")] {
            assert_eq!(regex_literal(regex), literal);
        }
        assert_eq!(regex_literal("a\nb"), r"/a\nb/");
    }
}
