//! Embeddings: the mean of a text's hidden rows, of length 1.

use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::choice::Choice;
use crate::completions;
use crate::fields::Fields;
use crate::generation::Job;
use crate::keys::Caller;
use crate::parameters::{self, Parameters};
use crate::reply::Reply;

/// Reads the body of `/v1/embeddings`.
pub(crate) fn read(app: &Shared, body: &[u8], caller: &Caller) -> Result<Job, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut parameters = Parameters::of_one(&mut fields, app, caller)?;
    parameters.max_tokens = Some(0);
    fields.ignore(&parameters::IGNORED);
    let encoding = fields.text("encoding_format")?.unwrap_or_else(|| "float".into());
    if !["float", "base64"].contains(&encoding.as_str()) {
        let message = format!("encoding_format is {encoding:?}, allowed are float and base64");
        return Err(ApiError::invalid("encoding_format", message));
    }
    let width = json!(app.model().config().hidden);
    fields.unsupported(&[("dimensions", &[width])])?;
    let input = fields.required("input")?;
    fields.finish()?;
    let prompts = completions::prompts(app, "input", input)?;
    let limit = app.limits.choices;
    if prompts.len() > limit {
        let message = format!("input has {} texts, the limit is {limit}", prompts.len());
        return Err(ApiError::invalid("input", message));
    }
    let mut repeated = Map::new();
    repeated.insert("encoding_format".into(), json!(encoding));
    Ok(Job { embed: true, repeated, ..Job::new(prompts, "input", parameters, 0) })
}

/// The whole answer.
pub(crate) fn whole(reply: &Reply, choices: &[Choice]) -> Value {
    let as_text = reply.job.repeated["encoding_format"] == "base64";
    let data = choices.iter().enumerate().map(|(index, choice)| {
        let row = unit(&choice.prompt.mean_hidden);
        let embedding = if as_text { json!(base64(&row)) } else { json!(row) };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    let tokens: usize = choices.iter().map(|choice| choice.prompt_tokens).sum();
    json!({
        "object": "list",
        "data": data.collect::<Vec<_>>(),
        "model": reply.app.model_name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "artel": reply.all_gates(choices),
    })
}

fn unit(row: &[f32]) -> Vec<f32> {
    let length = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    row.iter().map(|&value| (f64::from(value) * scale) as f32).collect()
}

/// The values' bytes, little end first, as openai-python asks for them.
/// Source: RFC 4648, section 4.
fn base64(row: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let byte = |index: usize| u32::from(part.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= part.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_text() {
        // As Python's base64.b64encode(struct.pack("<1f", 1.5)) and of two values say.
        assert_eq!(base64(&[1.5]), "AADAPw==");
        assert_eq!(base64(&[1.5, -2.0]), "AADAPwAAAMA=");
        assert_eq!(base64(&[1.5, -2.0, 0.25]), "AADAPwAAAMAAAIA+");
    }

    #[test]
    fn rows_become_of_length_one() {
        assert_eq!(unit(&[3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(unit(&[0.0, 0.0]), [0.0, 0.0]);
    }
}
