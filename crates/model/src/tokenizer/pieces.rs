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
use super::gguf::{BYTE, NORMAL, USER_DEFINED, added_tokens, tokens_and_types};
use crate::Error;
use crate::source::gguf::{self, Gguf};

/// Characters of the longest piece that merges are made for: each gives a merge for every place at
/// which it can be cut.
const MAX_PIECE: usize = 256;

/// Builds the tokenizer from `tokenizer.ggml.*`.
///
/// # Errors
/// When the metadata are incomplete or contradict each other, or the vocabulary puts a space before
/// each text.
pub(super) fn from_gguf(file: &Gguf) -> Result<Tokenizer, Error> {
    let (tokens, types) = tokens_and_types(file)?;
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = file.need(SCORES)?.floats().filter(|scores| scores.len() == tokens.len());
    let Some(scores) = scores else {
        let expected = format!("must be one number for each of {} tokens", tokens.len());
        return Err(file.wrong(SCORES, &expected));
    };
    const PREFIX: &str = "tokenizer.ggml.add_space_prefix";
    if file.get(PREFIX) != Some(&gguf::Value::Bool(false)) {
        let expected = "only vocabularies that add no space (false) are supported";
        return Err(file.wrong(PREFIX, expected));
    }
    if let Some(long) = tokens.iter().find(|token| token.chars().count() > MAX_PIECE) {
        let (value, limit) = (long.chars().count() as u64, MAX_PIECE as u64);
        let what = "the length of a piece in characters".into();
        return Err(Error::Limit { path: file.path.clone(), what, value, limit });
    }
    let unknown = file.get("tokenizer.ggml.unknown_token_id").and_then(gguf::Value::integer);
    let unknown = unknown.and_then(|id| tokens.get(usize::try_from(id).ok()?));
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(tokens, types),
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                { "type": "ByteFallback" },
                { "type": "Fuse" },
            ],
        },
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
    });
    Tokenizer::from_json(&file.path, json.to_string())
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
    use super::*;

    #[test]
    fn the_best_scored_union_is_merged_first() {
        let tokens = ["a", "b", "c", "ab", "bc", "abc", "<x>"].map(String::from);
        let types = [NORMAL, NORMAL, NORMAL, NORMAL, NORMAL, NORMAL, 3];
        let scores = [-1.0, -2.0, -3.0, -9.0, -5.0, -7.0, 0.0];
        let expected = [["b", "c"], ["a", "bc"], ["ab", "c"], ["a", "b"]];
        assert_eq!(merges(&tokens, &types, &scores), expected);
    }
}
