//! Text to tokens and back, as llama.cpp and vLLM ask for it.

use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::chat;
use crate::conversation::Conversation;
use crate::fields::{Fields, wrong};
use crate::parameters;
use crate::reply::token_bytes;
use crate::tools::{Shape, Tools};

/// What `/tokenize` answers: the tokens of `content` or `prompt` (a text), or of `messages`.
pub(crate) fn tokenize(app: &Shared, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    parameters::check_model(&mut fields, app)?;
    let with_pieces = fields.flag("with_pieces")?;
    let with_strings = fields.flag("return_token_strs")?;
    // Control tokens are read in texts, and none is added.
    fields.unsupported(&[
        ("add_special", &[json!(false)]),
        ("add_special_tokens", &[json!(false)]),
        ("parse_special", &[json!(true)]),
        ("add_generation_prompt", &[json!(true)]),
    ])?;
    let (content, prompt) = (fields.text("content")?, fields.text("prompt")?);
    let messages = fields.value("messages");
    let tools = Tools::of_openai(&mut fields, Shape::Nested)?;
    fields.finish()?;
    let tokens = match (content.or(prompt), messages) {
        (Some(text), None) => {
            let tokens = app.model().tokenizer.encode(&text);
            tokens.map_err(|error| ApiError::of_engine(error.into(), "content"))?
        }
        (None, Some(list)) => {
            let turns = chat::turns("messages", list, &chat::ROLES, &["text"])?;
            let conversation = Conversation { tools, ..Conversation::new(turns) };
            conversation.prompt(app, "messages")?
        }
        _ => {
            let message = "give one of content, prompt and messages";
            return Err(ApiError::invalid("content", message).with_code("missing_parameter"));
        }
    };
    let text = |id: u32| String::from_utf8_lossy(&token_bytes(app, id)).into_owned();
    let mut answer = json!({
        "count": tokens.len(),
        "max_model_len": app.model().config().context,
        "tokens": tokens,
    });
    if with_pieces {
        let piece = |&id: &u32| match String::from_utf8(token_bytes(app, id)) {
            Ok(text) => json!({"id": id, "piece": text}),
            Err(bytes) => json!({"id": id, "piece": bytes.into_bytes()}),
        };
        answer["tokens"] = tokens.iter().map(piece).collect();
    }
    if with_strings {
        answer["token_strs"] = tokens.iter().map(|&id| json!(text(id))).collect();
    }
    Ok(answer)
}

/// What `/detokenize` answers.
pub(crate) fn detokenize(app: &Shared, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    parameters::check_model(&mut fields, app)?;
    let value = fields.required("tokens")?;
    fields.finish()?;
    let Value::Array(items) = &value else {
        return Err(wrong("tokens", "a list of token ids", &value));
    };
    let vocab = app.model().config().vocab as u64;
    let mut bytes = Vec::new();
    for item in items {
        let id = item.as_u64().filter(|id| *id < vocab).ok_or_else(|| {
            ApiError::invalid("tokens", format!("tokens: {item} is not a token id"))
                .with_code("unknown_token")
        })?;
        bytes.extend(token_bytes(app, id as u32));
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(json!({"content": text, "prompt": text}))
}

/// What `/apply-template` answers: the text that the messages become.
pub(crate) fn apply_template(app: &Shared, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    parameters::check_model(&mut fields, app)?;
    let tools = Tools::of_openai(&mut fields, Shape::Nested)?;
    let generation = fields.value("add_generation_prompt").is_none_or(|value| value != false);
    let list = fields.required("messages")?;
    let turns = chat::turns("messages", list, &chat::ROLES, &["text"])?;
    fields.finish()?;
    let conversation = Conversation { tools, ..Conversation::new(turns) };
    Ok(json!({"prompt": conversation.text(app, generation)?}))
}
