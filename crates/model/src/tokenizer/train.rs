//! A tokenizer of its own for a model that is trained from random weights.
//!
//! **Source**: Sennrich et al. 2016, arXiv 1508.07909, algorithm 1, on bytes as in GPT-2.

use std::path::Path;

use serde_json::Value;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::Tokenizer;
use super::gguf::{CONTROL, NORMAL, build};
use super::split::Split;
use crate::Error;

/// How words are cut: as GPT-2 does, with every digit on its own, so that numbers are spelled out.
const SPLIT: &str = "smollm";
/// A pair that is seen less often is no token.
const LEAST: u64 = 2;

impl Tokenizer {
    /// A byte-level BPE of the texts, of `vocab` tokens at most: the special ones first, then the 256
    /// bytes, then what stands together most often. The same texts give the same tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if `vocab` has no room for the special tokens and the bytes.
    pub fn train(texts: &[String], vocab: usize, special: &[String]) -> Result<Tokenizer, Error> {
        let path = Path::new("of the documents");
        let problem = |problem: String| Error::Tokenizer { path: path.into(), problem };
        let least = special.len() + 256;
        if vocab < least {
            return Err(problem(format!("{vocab} tokens are too few; there must be {least}")));
        }
        let split = Split::named(SPLIT).expect("a name of the table");
        let splitter: PreTokenizerWrapper = serde_json::from_value(split.pre_tokenizer())
            .expect("the table's splits are known to the library");
        let mut inner = Inner::new(BPE::default());
        inner.with_pre_tokenizer(Some(splitter));
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .vocab_size(vocab)
            .min_frequency(LEAST)
            .show_progress(false)
            .special_tokens(special.iter().map(|name| AddedToken::from(name, true)).collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build()
            .into();
        inner
            .train(&mut trainer, texts.iter())
            .and_then(|inner| inner.to_string(false))
            .map_err(|error| problem(error.to_string()))
            .and_then(|json| {
                let json: Value = serde_json::from_str(&json)
                    .map_err(|source| Error::Json { path: path.into(), source })?;
                let (tokens, types) = tokens(&json, special)
                    .ok_or_else(|| problem("the library left a token out".into()))?;
                let merges = json["model"]["merges"].as_array().cloned().unwrap_or_default();
                Tokenizer::from_json(path, build(split, &tokens, &types, merges).to_string())
            })
    }
}

/// The tokens in the order of their ids, and their kinds.
fn tokens(json: &Value, special: &[String]) -> Option<(Vec<String>, Vec<i64>)> {
    let vocab = json["model"]["vocab"].as_object()?;
    let mut tokens = vec![None; vocab.len()];
    for (token, id) in vocab {
        *tokens.get_mut(usize::try_from(id.as_u64()?).ok()?)? = Some(token.clone());
    }
    let tokens: Vec<String> = tokens.into_iter().collect::<Option<_>>()?;
    let kind = |token: &String| if special.contains(token) { CONTROL } else { NORMAL };
    let types = tokens.iter().map(kind).collect();
    Some((tokens, types))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Vec<String> {
        let line = |n: usize| format!("The pump of line {n} is checked in week {}. ", 7 * n % 50);
        (0..40).map(line).collect()
    }

    #[test]
    fn frequent_words_become_tokens_and_every_text_survives() {
        let special = ["<|end|>".to_string(), "<|begin|>".to_string()];
        let tokenizer = Tokenizer::train(&texts(), 300, &special).unwrap();
        assert_eq!((tokenizer.id("<|end|>"), tokenizer.id("<|begin|>")), (Some(0), Some(1)));
        assert!(tokenizer.is_special(0) && !tokenizer.is_special(2));
        assert!(tokenizer.vocab() <= 300 && tokenizer.vocab() > 260);
        let ids = tokenizer.encode("The pump").unwrap();
        assert_eq!(ids.len(), 2, "{ids:?}");
        let other = "Störung 17 \u{1f6d1}\n<|end|>";
        assert_eq!(tokenizer.decode(&tokenizer.encode_plain(other).unwrap()), other);
        let again = Tokenizer::train(&texts(), 300, &special).unwrap();
        assert_eq!(again.json(), tokenizer.json());
    }

    #[test]
    fn a_vocabulary_without_room_for_the_bytes_is_refused() {
        let error = Tokenizer::train(&texts(), 255, &[]).unwrap_err().to_string();
        assert!(error.ends_with("255 tokens are too few; there must be 256"), "{error}");
    }
}
