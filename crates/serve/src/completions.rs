use engine::{PromptToken, Token};
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::choice::Choice;
use crate::fields::{Fields, wrong};
use crate::generation::{Job, constraint};
use crate::keys::Caller;
use crate::parameters::{MOST_LOGPROBS, Parameters};
use crate::reply::{Reply, finish_reason, token_bytes};
use crate::thinking::Thoughts;
use crate::tools::Tools;

/// Tokens of an answer where the request does not say, as at OpenAI.
const ANSWER_TOKENS: usize = 16;

const PROMPT_FORMS: &str = "a string, a list of strings, a list of token ids, or a list of these";

/// Reads the body of `/v1/completions`.
pub(crate) fn read(app: &Shared, body: &[u8], caller: &Caller) -> Result<Job, ApiError> {
    let mut fields = Fields::parse(body)?;
    let parameters = Parameters::read(&mut fields, app, caller)?;
    let logprobs = fields
        .integer("logprobs", 0..=MOST_LOGPROBS)?
        .and_then(|logprobs| usize::try_from(logprobs).ok());
    let echo = fields.flag("echo")?;
    fields
        .unsupported(&[("suffix", &[json!("")]), ("best_of", &[json!(1), json!(parameters.n)])])?;
    let prompt = fields.required("prompt")?;
    fields.finish()?;
    let prompts = prompts(app, "prompt", prompt)?;
    let (choices, limit) = (prompts.len() * parameters.n, app.limits.choices);
    if choices > limit {
        let message = format!("prompts × n is {choices}, the limit is {limit}");
        return Err(ApiError::invalid("prompt", message));
    }
    let constraint = constraint(app, &parameters.format, &Tools::default(), Thoughts::Never)?;
    let job = Job::new(prompts, "prompt", parameters, ANSWER_TOKENS);
    Ok(Job { constraint, logprobs, echo, ..job })
}

/// The prompts in the field `field`.
pub(crate) fn prompts(
    app: &Shared,
    field: &'static str,
    value: Value,
) -> Result<Vec<Vec<u32>>, ApiError> {
    match value {
        Value::String(text) => Ok(vec![encode(app, field, &text)?]),
        Value::Array(items) if items.is_empty() => {
            let message = format!("{field} is an empty list: give at least one {field}");
            Err(ApiError::invalid(field, message))
        }
        Value::Array(items) if items.iter().all(Value::is_number) => {
            Ok(vec![tokens(field, &items)?])
        }
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => encode(app, field, text),
                Value::Array(ids) => tokens(field, ids),
                other => Err(wrong(field, PROMPT_FORMS, other)),
            })
            .collect(),
        other => Err(wrong(field, PROMPT_FORMS, &other)),
    }
}

fn tokens(field: &'static str, ids: &[Value]) -> Result<Vec<u32>, ApiError> {
    let token = |id: &Value| {
        id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            ApiError::invalid(field, format!("{field}: {id} is not a token id"))
                .with_code("unknown_token")
        })
    };
    ids.iter().map(token).collect()
}

/// The text's tokens. An empty text is the beginning of a text.
fn encode(app: &Shared, field: &'static str, text: &str) -> Result<Vec<u32>, ApiError> {
    let tokens = app.model().tokenizer.encode(text);
    let tokens = tokens.map_err(|error| ApiError::invalid(field, error.to_string()))?;
    let config = app.model().config();
    let begin = config.bos.or(config.eos.first().copied());
    Ok(if tokens.is_empty() { begin.into_iter().collect() } else { tokens })
}

/// A choice of the whole answer.
pub(crate) fn choice(reply: &Reply, index: usize, choice: &Choice) -> Value {
    let mut place = 0;
    let mut text = String::new();
    let mut logprobs = LogProbs::default();
    if reply.job.echo {
        text = prompt_text(reply, index);
        logprobs.add_prompt(reply, &choice.prompt.tokens, &mut place);
    }
    logprobs.add(reply, &choice.tokens, &mut place);
    text.push_str(&choice.text());
    let mut artel = reply.gates(choice);
    if reply.job.parameters.token_experts {
        artel["token_experts"] = reply.token_gates(&choice.tokens);
    }
    json!({
        "index": index,
        "text": text,
        "logprobs": logprobs.value(reply),
        "finish_reason": finish_reason(choice),
        "artel": artel,
    })
}

/// The first chunk of a choice, where the prompt is echoed. `place` is where the text has got to.
pub(crate) fn first_chunk(
    reply: &Reply,
    index: usize,
    choice: &Choice,
    place: &mut usize,
) -> Option<Value> {
    if !reply.job.echo {
        return None;
    }
    let mut logprobs = LogProbs::default();
    logprobs.add_prompt(reply, &choice.prompt.tokens, place);
    let (text, logprobs) = (prompt_text(reply, index), logprobs.value(reply));
    Some(json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": null}))
}

/// A chunk with a token; none where nothing shows yet.
pub(crate) fn token_chunk(
    reply: &Reply,
    index: usize,
    token: &Token,
    place: &mut usize,
) -> Option<Value> {
    let with_gates = reply.job.parameters.token_experts;
    if token.text.is_empty() && reply.job.logprobs.is_none() && !with_gates {
        return None;
    }
    let tokens = std::slice::from_ref(token);
    let mut logprobs = LogProbs::default();
    logprobs.add(reply, tokens, place);
    let mut chunk = json!({
        "index": index,
        "text": token.text,
        "logprobs": logprobs.value(reply),
        "finish_reason": null,
    });
    if with_gates {
        chunk["artel"] = json!({"token_experts": reply.token_gates(tokens)});
    }
    Some(chunk)
}

/// The last chunk of a choice; `rest` is text that was withheld.
pub(crate) fn last_chunk(reply: &Reply, index: usize, choice: &Choice, rest: &str) -> Value {
    json!({
        "index": index,
        "text": rest,
        "logprobs": null,
        "finish_reason": finish_reason(choice),
        "artel": reply.gates(choice),
    })
}

/// The prompt as the tokens spell it, special ones too, so that `text_offset` fits it.
fn prompt_text(reply: &Reply, index: usize) -> String {
    let tokens = reply.job.prompt(index).iter();
    let bytes: Vec<u8> = tokens.flat_map(|&id| token_bytes(&reply.app, id)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// OpenAI's older form of log-probabilities: lists side by side.
#[derive(Default)]
struct LogProbs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Value>,
    /// Characters of the text before each token.
    text_offset: Vec<usize>,
}

impl LogProbs {
    fn add_prompt(&mut self, reply: &Reply, tokens: &[PromptToken], place: &mut usize) {
        for token in tokens {
            self.push(reply, token.id, token.logprob, &token.top, place);
        }
    }

    fn add(&mut self, reply: &Reply, tokens: &[Token], place: &mut usize) {
        for token in tokens {
            self.push(reply, token.id, Some(token.logprob), &token.top, place);
        }
    }

    fn push(
        &mut self,
        reply: &Reply,
        id: u32,
        logprob: Option<f32>,
        top: &[(u32, f32)],
        place: &mut usize,
    ) {
        let bytes = token_bytes(&reply.app, id);
        self.text_offset.push(*place);
        // A character counts where it begins: tokens may cut it anywhere.
        *place += bytes.iter().filter(|&&byte| !(0x80..0xc0).contains(&byte)).count();
        let top = logprob.map(|logprob| {
            // The token itself is always there, be it among the likeliest or not.
            let all = top.iter().copied().chain([(id, logprob)]);
            let mut by_text = Map::new();
            for (id, logprob) in all {
                by_text.entry(spelled(&token_bytes(&reply.app, id))).or_insert(json!(logprob));
            }
            Value::Object(by_text)
        });
        self.tokens.push(spelled(&bytes));
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(top.unwrap_or(Value::Null));
    }

    fn value(self, reply: &Reply) -> Value {
        if reply.job.logprobs.is_none() {
            return Value::Null;
        }
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// A token as text; as `bytes:\xe2\x82` where it is part of a character, as at OpenAI.
fn spelled(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}"))
        }
    }
}
