use model::{Message, Model};
use serde_json::{Map, Value, json};

use crate::Error;

/// Fields of a message whose text the template puts into the prompt as it is.
const TEXTS: [&str; 2] = ["content", "reasoning_content"];

/// The prompt tokens of a conversation, ready for the assistant's answer.
///
/// The text of the messages is never read as control tokens: a user who types `<|im_end|>` sends
/// these characters, not the end of the message.
///
/// # Errors
/// The template refuses the messages (an unknown role, say), or the tokenizer fails.
pub fn chat_prompt(model: &Model, messages: &[Message]) -> Result<Vec<u32>, Error> {
    let message = |message: &Message| json!({"role": message.role, "content": message.content});
    prompt_of(model, &messages.iter().map(message).collect::<Vec<_>>(), &Map::new())
}

/// As [`chat_prompt`], of messages in the form that chat templates take, calls of tools included,
/// and with further variables of the template (`tools`, `enable_thinking`).
///
/// # Errors
/// As [`chat_prompt`]; or a text other than a message's contains a control token.
pub fn prompt_of(
    model: &Model,
    messages: &[Value],
    variables: &Map<String, Value>,
) -> Result<Vec<u32>, Error> {
    let tokenizer = &model.tokenizer;
    let mut texts: Vec<String> = Vec::new();
    let mut has_control = false;
    for text in messages.iter().flat_map(texts_of) {
        has_control |= control(model, text)?.is_some();
        texts.push(text.to_owned());
    }
    for (index, message) in messages.iter().enumerate() {
        let rest = message.as_object().into_iter().flatten();
        for (name, value) in rest.filter(|(name, _)| !TEXTS.contains(&name.as_str())) {
            refuse_control(model, &format!("messages[{index}].{name}"), value)?;
        }
    }
    for (name, value) in variables {
        refuse_control(model, name, value)?;
    }
    let render = |messages: &[Value]| model.template.render_values(messages, variables, true);
    if !has_control {
        return Ok(tokenizer.encode(&render(messages)?)?);
    }
    // Rendered with placeholders, so that contents can be encoded apart from the template's text.
    // Only then: encoding in parts may split words at the seams otherwise than training did.
    let mut placeholders = messages.to_vec();
    let mut places = 0..;
    for message in &mut placeholders {
        for name in TEXTS {
            if let Some(Value::String(text)) = message.get_mut(name) {
                *text = placeholder(places.next().expect("numbers do not end"));
            }
        }
    }
    let rendered = render(&placeholders)?;
    let mut tokens = Vec::new();
    let mut rest = rendered.as_str();
    // A template may leave a text out, or put it elsewhere.
    while let Some((at, index, end)) = next_placeholder(rest) {
        tokens.extend(tokenizer.encode(&rest[..at])?);
        tokens.extend(tokenizer.encode_plain(texts.get(index).map_or("", String::as_str))?);
        rest = &rest[end..];
    }
    tokens.extend(tokenizer.encode(rest)?);
    Ok(tokens)
}

fn texts_of(message: &Value) -> impl Iterator<Item = &str> {
    TEXTS.iter().filter_map(|name| message.get(name)?.as_str())
}

/// The first control token in the text.
fn control(model: &Model, text: &str) -> Result<Option<u32>, Error> {
    let tokens = model.tokenizer.encode(text)?;
    Ok(tokens.into_iter().find(|&token| model.tokenizer.is_special(token)))
}

/// Names and schemas are written among the template's own text, so they must be free of it.
fn refuse_control(model: &Model, path: &str, value: &Value) -> Result<(), Error> {
    let refuse = |text: &str| match control(model, text)? {
        None => Ok(()),
        Some(id) => {
            let token = String::from_utf8_lossy(&model.tokenizer.token_bytes(id)).into_owned();
            Err(Error::Mark { field: path.to_owned(), token })
        }
    };
    match value {
        Value::String(text) => refuse(text),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| refuse_control(model, &format!("{path}[{index}]"), item)),
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            refuse(name)?;
            refuse_control(model, &format!("{path}.{name}"), value)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// Private-use characters, which no template contains.
fn placeholder(index: usize) -> String {
    format!("\u{f8f0}{index}\u{f8f1}")
}

/// Where the next placeholder begins, its number, and where it ends.
fn next_placeholder(text: &str) -> Option<(usize, usize, usize)> {
    let at = text.find('\u{f8f0}')?;
    let number = at + '\u{f8f0}'.len_utf8();
    let length = text[number..].find('\u{f8f1}')?;
    let index = text[number..number + length].parse().ok()?;
    Some((at, index, number + length + '\u{f8f1}'.len_utf8()))
}
