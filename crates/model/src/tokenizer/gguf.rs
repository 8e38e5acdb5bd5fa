//! The tokenizer in the metadata of a GGUF file, read and written.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::Tokenizer;
use crate::Error;
use crate::source::gguf::Gguf;

const LLAMA3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN2: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// How text is cut into the words within which tokens are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    Gpt2,
    /// GPT-2's, with every digit on its own.
    Digits,
    Llama3,
    Qwen2,
}

impl Split {
    /// By the value of `tokenizer.ggml.pre`. Source: llama.cpp `llama-vocab.cpp`.
    fn named(name: &str) -> Option<Split> {
        Some(match name {
            "default" | "gpt-2" | "phi-2" | "mpt" | "olmo" | "jina-es" | "jina-de" => Split::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone"
            | "minerva-7b" => Split::Digits,
            "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" => Split::Llama3,
            "qwen2" | "deepseek-r1-qwen" => Split::Qwen2,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Split::Gpt2 => "gpt-2",
            Split::Digits => "smollm",
            Split::Llama3 => "llama-bpe",
            Split::Qwen2 => "qwen2",
        }
    }

    /// As `tokenizer.json` says it.
    fn pre_tokenizer(self) -> Value {
        let bytes = |use_regex: bool| {
            json!({
                "type": "ByteLevel",
                "add_prefix_space": false,
                "trim_offsets": true,
                "use_regex": use_regex,
            })
        };
        let first = match self {
            Split::Gpt2 => return bytes(true),
            Split::Digits => json!({ "type": "Digits", "individual_digits": true }),
            Split::Llama3 | Split::Qwen2 => json!({
                "type": "Split",
                "pattern": { "Regex": if self == Split::Llama3 { LLAMA3 } else { QWEN2 } },
                "behavior": "Isolated",
                "invert": false,
            }),
        };
        let second = bytes(self == Split::Digits);
        json!({ "type": "Sequence", "pretokenizers": [first, second] })
    }

    /// The inverse of [`Split::pre_tokenizer`].
    fn of(pre_tokenizer: &Value) -> Option<Split> {
        let mut found = pre_tokenizer.clone();
        settle(&mut found);
        let same = |split: &Split| split.pre_tokenizer() == found;
        [Split::Gpt2, Split::Digits, Split::Llama3, Split::Qwen2].into_iter().find(same)
    }
}

/// Spells one way what `tokenizer.json` files spell several ways.
fn settle(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(settle),
        Value::Object(object) => {
            if object.get("type").is_some_and(|t| t == "ByteLevel") {
                // Offsets are not used here, and GPT-2's pattern is the default.
                object.insert("trim_offsets".into(), true.into());
                object.entry("use_regex").or_insert(true.into());
            }
            object.values_mut().for_each(settle);
        }
        _ => {}
    }
}

const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
const UNKNOWN: i64 = 2;
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
        "llama" => return super::pieces::from_gguf(file),
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
        let expected = "supported are gpt-2, smollm, llama-bpe, qwen2 and those that equal them";
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
fn build(split: Split, tokens: &[String], types: &[i64], merges: Vec<Value>) -> Value {
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(tokens, types),
        "normalizer": if split == Split::Qwen2 { json!({ "type": "NFC" }) } else { Value::Null },
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
            // Llama 3 takes a word that is a token as it is, though no merges lead there.
            "ignore_merges": split == Split::Llama3,
            "vocab": vocab,
            "merges": merges,
        },
    })
}

/// What a GGUF file says of a tokenizer.
pub(crate) struct Vocabulary {
    /// The value of `tokenizer.ggml.pre`.
    pub(crate) pre: &'static str,
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) merges: Vec<String>,
}

/// The tokenizer as GGUF metadata, with unused tokens up to `size`, the rows of the embedding.
///
/// # Errors
/// When it is no byte-level BPE with one of the splits that GGUF files can name.
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
    let Some(split) = Split::of(&json["pre_tokenizer"]) else {
        return Err(problem(&format!("its pre-tokenizer is {}", json["pre_tokenizer"])));
    };
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
    let merge = |merge: &Value| match merge {
        Value::String(merge) => Some(merge.clone()),
        Value::Array(pair) => {
            Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?))
        }
        _ => None,
    };
    let merges: Option<Vec<String>> =
        model["merges"].as_array().and_then(|list| list.iter().map(merge).collect());
    let merges = merges.ok_or_else(|| problem("its merges are not pairs of tokens"))?;
    Ok(Vocabulary { pre: split.name(), tokens, types, merges })
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::PreTokenizerWrapper;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    #[test]
    fn splits_words_as_named() {
        let cases = [
            ("gpt-2", "I|'m|Ġ1234|Ġok|ĊĊĠ|Ġx"),
            ("smollm", "I|'m|Ġ|1|2|3|4|Ġok|ĊĊĠ|Ġx"),
            ("llama-bpe", "I|'m|Ġ|123|4|Ġok|ĊĊ|Ġ|Ġx"),
            ("qwen2", "I|'m|Ġ|1|2|3|4|Ġok|ĊĊ|Ġ|Ġx"),
        ];
        for (name, expected) in cases {
            let json = Split::named(name).unwrap().pre_tokenizer();
            assert_eq!(Split::of(&json).unwrap().name(), name);
            let splitter: PreTokenizerWrapper = serde_json::from_value(json).unwrap();
            let mut text = PreTokenizedString::from("I'm 1234 ok\n\n  x");
            splitter.pre_tokenize(&mut text).unwrap();
            let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
            let words: Vec<&str> = splits.iter().map(|(word, _, _)| *word).collect();
            assert_eq!(words.join("|"), expected, "{name}");
        }
    }
}
