//! The tokenizer in the metadata of a GGUF file, read and written.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::split::Split;
use super::{Tokenizer, pieces};
use crate::Error;
use crate::source::gguf::Gguf;

pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
pub(super) const UNKNOWN: i64 = 2;
pub(super) const NORMAL: i64 = 1;
const UNUSED: i64 = 5;
pub(super) const BYTE: i64 = 6;

/// Builds the tokenizer from `tokenizer.ggml.*`.
///
/// # Errors
/// When the metadata are incomplete or contradict each other, or the kind is not supported.
pub(crate) fn from_gguf(file: &Gguf) -> Result<Tokenizer, Error> {
    match file.text("tokenizer.ggml.model")? {
        "gpt2" => {}
        "llama" => return pieces::from_gguf(file),
        _ => {
            let expected = "supported are byte-level BPE (\"gpt2\") and SentencePiece (\"llama\"); \
                            use the model's Hugging Face folder";
            return Err(file.wrong("tokenizer.ggml.model", expected));
        }
    }
    let name = match file.get("tokenizer.ggml.pre") {
        Some(_) => file.text("tokenizer.ggml.pre")?,
        None => "default",
    };
    let Some(split) = Split::named(name) else {
        let expected = "supported are gpt-2, smollm, llama-bpe, chatglm-bpe, qwen2, deepseek-llm, \
                        deepseek-coder, deepseek-v3, gpt-4o, tekken and those that equal them";
        return Err(file.wrong("tokenizer.ggml.pre", expected));
    };
    if name == "default" {
        tracing::warn!(
            file = %file.path.display(),
            "the file does not say how words are split; splitting them as GPT-2 does"
        );
    }
    let (tokens, types) = tokens_and_types(file)?;
    let Some(merges) = file.need("tokenizer.ggml.merges")?.texts() else {
        return Err(file.wrong("tokenizer.ggml.merges", "must be a list of merges"));
    };
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        // A token may begin with a space, so the separator is a later one.
        let second = merge.char_indices().nth(1).map_or(merge.len(), |(at, _)| at);
        let Some(at) = merge[second..].find(' ') else {
            let expected = format!("each must be two tokens, but one is {merge:?}");
            return Err(file.wrong("tokenizer.ggml.merges", &expected));
        };
        pairs.push(json!([merge[..second + at], merge[second + at + 1..]]));
    }
    let json = build(split, tokens, types, pairs);
    Tokenizer::from_json(&file.path, json.to_string())
}

pub(super) fn tokens_and_types(file: &Gguf) -> Result<(&[String], &[i64]), Error> {
    let Some(tokens) = file.need("tokenizer.ggml.tokens")?.texts() else {
        return Err(file.wrong("tokenizer.ggml.tokens", "must be a list of texts"));
    };
    // Without the types no special token would be known, and none found in a prompt.
    let types = file.need("tokenizer.ggml.token_type")?.integers();
    let Some(types) = types.filter(|types| types.len() == tokens.len()) else {
        let expected = format!("must be one number for each of {} tokens", tokens.len());
        return Err(file.wrong("tokenizer.ggml.token_type", &expected));
    };
    let mut seen = HashSet::with_capacity(tokens.len());
    if let Some(twice) = tokens.iter().find(|token| !seen.insert(token.as_str())) {
        let expected = format!("{twice:?} stands in it twice");
        return Err(file.wrong("tokenizer.ggml.tokens", &expected));
    }
    Ok((tokens, types))
}

/// The tokens that are found in a text before it is cut into words.
pub(super) fn added_tokens(tokens: &[String], types: &[i64]) -> Vec<Value> {
    let added = tokens.iter().zip(types).enumerate();
    let added = added.filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED | UNKNOWN));
    let added = added.map(|(id, (token, kind))| {
        json!({
            "id": id,
            "content": token,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": *kind != USER_DEFINED,
        })
    });
    added.collect()
}

/// The `tokenizer.json` of a byte-level BPE.
pub(super) fn build(split: &Split, tokens: &[String], types: &[i64], merges: Vec<Value>) -> Value {
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(tokens, types),
        "normalizer": if split.composes { json!({ "type": "NFC" }) } else { Value::Null },
        "pre_tokenizer": split.pre_tokenizer(),
        "post_processor": null,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": true,
            "trim_offsets": true,
            "use_regex": true,
        },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": split.ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    })
}

/// What a GGUF file says of a tokenizer.
pub(crate) struct Vocabulary {
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) kind: Kind,
}

/// How tokens are put together.
pub(crate) enum Kind {
    /// Of bytes; `pre` is the value of `tokenizer.ggml.pre`.
    Bytes { pre: &'static str, merges: Vec<String> },
    /// As SentencePiece does; `prefix` is whether a space is put before each text.
    Pieces { scores: Vec<f32>, prefix: bool },
}

/// The tokenizer as GGUF metadata, with unused tokens up to `size`, the rows of the embedding.
///
/// # Errors
/// When it is neither a byte-level BPE with one of the splits that GGUF files can name, nor one of
/// SentencePiece.
pub(crate) fn vocabulary(tokenizer: &Tokenizer, size: usize) -> Result<Vocabulary, Error> {
    let problem = |problem: &str| {
        tokenizer.problem(format!("{problem}, which cannot be said in a GGUF file"))
    };
    let json: Value = serde_json::from_str(&tokenizer.json)
        .map_err(|source| Error::Json { path: tokenizer.path.clone(), source })?;
    let model = &json["model"];
    // Files of before 2020 leave the type out; such models have merges.
    let bpe = model.get("type").is_none_or(|t| t == "BPE") && model["merges"].is_array();
    if !bpe {
        return Err(problem("it is no BPE"));
    }
    let (split, prefix) = (Split::of(&json), pieces::prefix(&json));
    if split.is_none() && prefix.is_none() {
        return Err(problem(&format!("its pre-tokenizer is {}", json["pre_tokenizer"])));
    }
    if tokenizer.vocab() > size {
        let count = tokenizer.vocab();
        return Err(tokenizer
            .problem(format!("it has {count} tokens, but the model's embedding has {size} rows")));
    }
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![UNUSED as i32; size];
    for (token, id) in tokenizer.parsing.get_vocab(true) {
        tokens[id as usize] = token;
        types[id as usize] = NORMAL as i32;
    }
    for (id, token) in tokenizer.parsing.get_added_tokens_decoder() {
        types[id as usize] = if token.special { CONTROL } else { USER_DEFINED } as i32;
    }
    let merges: Option<Vec<[String; 2]>> =
        model["merges"].as_array().and_then(|list| list.iter().map(pair).collect());
    let merges = merges.ok_or_else(|| problem("its merges are not pairs of tokens"))?;
    let kind = match (split, prefix) {
        (Some(split), _) => {
            let merges = merges.iter().map(|[left, right]| format!("{left} {right}")).collect();
            Kind::Bytes { pre: split.name(), merges }
        }
        (None, prefix) => {
            pieces::mark(&tokens, &mut types, model["unk_token"].as_str());
            let scores = pieces::scores(&tokens, &merges);
            Kind::Pieces { scores, prefix: prefix.unwrap_or(true) }
        }
    };
    Ok(Vocabulary { tokens, types, kind })
}

/// The two tokens of a merge, which files write in one of two ways.
fn pair(merge: &Value) -> Option<[String; 2]> {
    match merge {
        Value::String(merge) => {
            let (left, right) = merge.split_once(' ')?;
            Some([left.into(), right.into()])
        }
        Value::Array(pair) => Some([pair.first()?.as_str()?.into(), pair.get(1)?.as_str()?.into()]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/reference/vocabularies.py`.
    #[derive(serde::Deserialize)]
    struct Fixture {
        tokens: Vec<String>,
        types: Vec<i64>,
        merges: Vec<[String; 2]>,
        texts: Vec<String>,
        ids: std::collections::BTreeMap<String, Vec<Vec<u32>>>,
    }

    #[test]
    fn texts_are_split_as_by_llama_cpp() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = std::fs::read(path.join("tests/fixtures/splits.json")).unwrap();
        let found: Fixture = serde_json::from_slice(&file).unwrap();
        for (name, expected) in &found.ids {
            let split = Split::named(name).unwrap();
            let merges = found.merges.iter().map(|merge| json!(merge)).collect();
            let json = build(split, &found.tokens, &found.types, merges).to_string();
            let tokenizer = Tokenizer::from_json(path, json).unwrap();
            for (text, ids) in found.texts.iter().zip(expected) {
                assert_eq!(&tokenizer.encode_plain(text).unwrap(), ids, "{name} {text:?}");
                assert_eq!(&tokenizer.decode(ids), text, "{name}");
            }
        }
        assert_eq!(found.ids.len(), 10);
    }
}
