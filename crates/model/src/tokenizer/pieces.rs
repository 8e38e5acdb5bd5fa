//! SentencePiece vocabularies in the metadata of a GGUF file, as merges.
//!
//! SentencePiece joins the two neighbours whose union is the best-scored piece, again and again.
//! That is byte-pair encoding whose merges are all pairs that make up a piece, in the order of the
//! pieces' scores.
//!
//! **Source**: Kudo and Richardson 2018, arXiv 1808.06226, section 3; `sentencepiece` `bpe_model.cc`.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::Tokenizer;
use super::gguf::{BYTE, NORMAL, UNKNOWN, USER_DEFINED, added_tokens, tokens_and_types};
use crate::Error;
use crate::source::gguf::{self, Gguf};

/// Characters of the longest piece that merges are made for: each gives a merge for every place at
/// which it can be cut.
const MAX_PIECE: usize = 256;

/// Builds the tokenizer from `tokenizer.ggml.*`.
///
/// # Errors
/// When the metadata are incomplete or contradict each other.
pub(super) fn from_gguf(file: &Gguf) -> Result<Tokenizer, Error> {
    let (tokens, types) = tokens_and_types(file)?;
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = file.need(SCORES)?.floats().filter(|scores| scores.len() == tokens.len());
    let Some(scores) = scores else {
        let expected = format!("must be one number for each of {} tokens", tokens.len());
        return Err(file.wrong(SCORES, &expected));
    };
    const PREFIX: &str = "tokenizer.ggml.add_space_prefix";
    let prefix = match file.get(PREFIX) {
        // What SentencePiece does unless told otherwise.
        None => true,
        Some(gguf::Value::Bool(prefix)) => *prefix,
        Some(_) => return Err(file.wrong(PREFIX, "must be true or false")),
    };
    if let Some(long) = tokens.iter().find(|token| token.chars().count() > MAX_PIECE) {
        let (value, limit) = (long.chars().count() as u64, MAX_PIECE as u64);
        let what = "the length of a piece in characters".into();
        return Err(Error::Limit { path: file.path.clone(), what, value, limit });
    }
    let unknown = file.get("tokenizer.ggml.unknown_token_id").and_then(gguf::Value::integer);
    let unknown = unknown.and_then(|id| tokens.get(usize::try_from(id).ok()?));
    let pieces = Pieces { tokens, types, scores, prefix, unknown };
    Tokenizer::from_json(&file.path, pieces.json().to_string())
}

/// A SentencePiece vocabulary.
struct Pieces<'a> {
    tokens: &'a [String],
    types: &'a [i64],
    scores: &'a [f64],
    /// Whether a space is put before each text, and before what follows a special token.
    prefix: bool,
    unknown: Option<&'a String>,
}

impl Pieces<'_> {
    /// The `tokenizer.json`.
    fn json(&self) -> Value {
        let &Pieces { tokens, types, scores, prefix, unknown } = self;
        let vocab: serde_json::Map<String, Value> =
            tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
        let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        let mut normalizer = spaces;
        if prefix {
            let prepend = json!({ "type": "Prepend", "prepend": "▁" });
            normalizer = json!({ "type": "Sequence", "normalizers": [prepend, normalizer] });
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added_tokens(tokens, types),
            "normalizer": normalizer,
            "pre_tokenizer": null,
            "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": unknown,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": true,
                "byte_fallback": types.contains(&BYTE),
                "ignore_merges": false,
                "vocab": vocab,
                "merges": merges(tokens, types, scores),
            },
        })
    }
}

/// Of a `tokenizer.json` that is a SentencePiece vocabulary: whether a space is put before a text.
pub(super) fn prefix(json: &Value) -> Option<bool> {
    let steps = |value: &Value, list: &str| -> Vec<Value> {
        match &value[list] {
            Value::Array(steps) => steps.clone(),
            _ => vec![value.clone()],
        }
    };
    if json["model"]["byte_fallback"] != Value::Bool(true) {
        return None;
    }
    let before = &json["pre_tokenizer"];
    if before["type"] == "Metaspace" && before["replacement"] == "▁" {
        return Some(before["prepend_scheme"] != "never");
    }
    let steps = steps(&json["normalizer"], "normalizers");
    let spaces = steps.iter().any(|step| step["type"] == "Replace" && step["content"] == "▁");
    let prepends = steps.iter().any(|step| step["type"] == "Prepend");
    (before.is_null() && spaces).then_some(prepends)
}

/// Marks the pieces that are bytes, and the one for what is unknown.
pub(super) fn mark(tokens: &[String], types: &mut [i32], unknown: Option<&str>) {
    for (token, kind) in tokens.iter().zip(types) {
        if unknown == Some(token) {
            *kind = UNKNOWN as i32;
        } else if super::piece_byte(token).is_some() {
            *kind = BYTE as i32;
        }
    }
}

/// Scores that put the pieces in the order in which they are merged.
pub(super) fn scores(tokens: &[String], merges: &[[String; 2]]) -> Vec<f32> {
    let mut first: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, [left, right]) in merges.iter().enumerate() {
        first.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |token: &String| first.get(token).map_or(0.0, |rank| -(1.0 + *rank as f32));
    tokens.iter().map(score).collect()
}

/// All pairs of pieces whose union is a piece, the best union first.
fn merges<'a>(tokens: &'a [String], types: &[i64], scores: &[f64]) -> Vec<[&'a str; 2]> {
    let is_piece = |kind: i64| matches!(kind, NORMAL | USER_DEFINED);
    let pieces: HashMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| is_piece(types[*id]))
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut ids: Vec<usize> = pieces.values().copied().collect();
    ids.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let mut merges = Vec::new();
    for id in ids {
        let token = tokens[id].as_str();
        for (at, _) in token.char_indices().skip(1) {
            let pair = [&token[..at], &token[at..]];
            if pair.iter().all(|part| pieces.contains_key(part)) {
                merges.push(pair);
            }
        }
    }
    merges
}

#[cfg(test)]
mod tests {
    use super::super::gguf::Kind;
    use super::*;

    #[test]
    fn the_best_scored_union_is_merged_first() {
        let tokens = ["a", "b", "c", "ab", "bc", "abc", "<x>"].map(String::from);
        let types = [NORMAL, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL, 3];
        let scores = [-1.0, -2.0, -3.0, -9.0, -5.0, -7.0, 0.0];
        let expected = [["b", "c"], ["a", "bc"], ["ab", "c"], ["a", "b"]];
        assert_eq!(merges(&tokens, &types, &scores), expected);
    }

    /// Made by `tests/reference/vocabularies.py`.
    #[derive(serde::Deserialize)]
    struct Fixture {
        tokens: Vec<String>,
        types: Vec<i64>,
        scores: Vec<f64>,
        texts: Vec<String>,
        /// With a space before each text, and without.
        ids: [Vec<Vec<u32>>; 2],
        /// Special tokens in the text, found.
        marked: String,
        marked_ids: Vec<u32>,
    }

    #[test]
    fn texts_have_the_tokens_that_sentencepiece_gives() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = std::fs::read(path.join("tests/fixtures/pieces.json")).unwrap();
        let found: Fixture = serde_json::from_slice(&file).unwrap();
        for (prefix, expected) in [true, false].into_iter().zip(&found.ids) {
            let pieces = Pieces {
                tokens: &found.tokens,
                types: &found.types,
                scores: &found.scores,
                prefix,
                unknown: Some(&found.tokens[0]),
            };
            let tokenizer = Tokenizer::from_json(path, pieces.json().to_string()).unwrap();
            for (text, ids) in found.texts.iter().zip(expected) {
                assert_eq!(&tokenizer.encode_plain(text).unwrap(), ids, "{text:?} {prefix}");
                assert_eq!(&tokenizer.decode(ids), text, "{prefix}");
            }
            if prefix {
                assert_eq!(tokenizer.encode(&found.marked).unwrap(), found.marked_ids);
            }
            let said = super::super::vocabulary(&tokenizer, found.tokens.len() + 1).unwrap();
            assert_eq!(said.tokens[..found.tokens.len()], found.tokens);
            let types: Vec<i64> = said.types.iter().map(|kind| i64::from(*kind)).collect();
            assert_eq!(types[..found.types.len()], found.types);
            let Kind::Pieces { scores, prefix: again } = said.kind else { panic!("of bytes") };
            assert_eq!(again, prefix);
            let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
            assert_eq!(
                merges(&said.tokens, &types, &scores),
                merges(&found.tokens, &found.types, &found.scores)
            );
        }
    }
}
