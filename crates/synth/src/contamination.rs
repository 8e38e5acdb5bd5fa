//! Whether examples repeat the questions that the model is judged by.

use std::collections::HashMap;

use crate::english;
use crate::example::Example;

/// Words in a row that no example may share with a question.
pub const NGRAM: usize = 8;

/// An example and a question that share [`NGRAM`] words in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The example's id.
    pub example: String,
    /// Index into the questions.
    pub question: usize,
    /// The first words they share.
    pub words: String,
}

/// Examples that share 8 words in a row with a question; a question of fewer words must be
/// contained whole. At most one overlap is returned for each example.
pub fn contamination<'a>(
    examples: impl Iterator<Item = &'a Example>,
    questions: &[String],
) -> Vec<Overlap> {
    let mut grams: HashMap<String, usize> = HashMap::new();
    let mut lengths = Vec::new();
    for (index, question) in questions.iter().enumerate() {
        let words = english::words(question);
        let length = NGRAM.min(words.len());
        if length == 0 {
            continue;
        }
        for window in words.windows(length) {
            grams.entry(window.join(" ")).or_insert(index);
        }
        lengths.push(length);
    }
    lengths.sort_unstable();
    lengths.dedup();
    examples
        .filter_map(|example| {
            let words = english::words(&example.body.text());
            let (question, shared) = lengths.iter().find_map(|&length| {
                words.windows(length).find_map(|window| {
                    let gram = window.join(" ");
                    grams.get(&gram).map(|&question| (question, gram))
                })
            })?;
            Some(Overlap { example: example.id.clone(), question, words: shared })
        })
        .collect()
}
