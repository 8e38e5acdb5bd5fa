use model::{Message, Model};

use crate::Error;

/// The prompt tokens of a conversation, ready for the assistant's answer.
///
/// The text of the messages is never read as control tokens: a user who types `<|im_end|>` sends
/// these characters, not the end of the message.
///
/// # Errors
/// The template refuses the messages (an unknown role, say), or the tokenizer fails.
pub fn chat_prompt(model: &Model, messages: &[Message]) -> Result<Vec<u32>, Error> {
    let tokenizer = &model.tokenizer;
    let mut has_control = false;
    for message in messages {
        let tokens = tokenizer.encode(&message.content)?;
        has_control |= tokens.iter().any(|&token| tokenizer.is_special(token));
    }
    if !has_control {
        return Ok(tokenizer.encode(&model.template.render(messages, true)?)?);
    }
    // Rendered with placeholders, so that contents can be encoded apart from the template's text.
    // Only then: encoding in parts may split words at the seams otherwise than training did.
    let placeholders: Vec<Message> = messages
        .iter()
        .enumerate()
        .map(|(index, message)| Message { role: message.role.clone(), content: placeholder(index) })
        .collect();
    let rendered = model.template.render(&placeholders, true)?;
    let mut tokens = Vec::new();
    let mut rest = rendered.as_str();
    for (index, message) in messages.iter().enumerate() {
        // A template may leave a message out.
        if let Some((before, after)) = rest.split_once(&placeholder(index)) {
            tokens.extend(tokenizer.encode(before)?);
            tokens.extend(tokenizer.encode_plain(&message.content)?);
            rest = after;
        }
    }
    tokens.extend(tokenizer.encode(rest)?);
    Ok(tokens)
}

/// Private-use characters, which no template contains.
fn placeholder(index: usize) -> String {
    format!("\u{f8f0}{index}\u{f8f1}")
}
