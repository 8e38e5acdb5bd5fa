//! Sentences of running text.

use super::{Content, Fact, Scope};
use crate::english;

const SHORTEST: usize = 5;
const LONGEST: usize = 45;

/// Each sentence that can stand alone. One that leans on its neighbour (`It …`, `This …`) is
/// kept together with the sentence before it.
pub(super) fn extract(scope: &Scope, text: &str, facts: &mut Vec<Fact>) {
    let sentences = english::sentences(text);
    let mut before: Option<&str> = None;
    for sentence in &sentences {
        let usable = is_statement(sentence);
        let first = sentence.split_whitespace().next().unwrap_or("").to_lowercase();
        let refers =
            english::words(sentence).iter().any(|w| ["it", "them", "they"].contains(&w.as_str()));
        let leans = english::is_pronoun(first.trim_end_matches(','))
            || refers && before.is_some() && !sentence.contains(',');
        let whole = match before {
            Some(before) if leans => format!("{before} {sentence}"),
            _ => sentence.clone(),
        };
        let fits = (SHORTEST..=LONGEST).contains(&english::word_count(&whole));
        let alone = !leans || before.is_some();
        if usable && fits && alone && !points_elsewhere(sentence) {
            let content = Content::Sentence { text: whole };
            facts.push(Fact { scope: scope.clone(), evidence: sentence.clone(), content });
        }
        before = (usable && !leans).then_some(sentence);
    }
}

fn is_statement(sentence: &str) -> bool {
    let letters = sentence.chars().filter(|c| c.is_alphabetic()).count();
    sentence.ends_with('.')
        && sentence.starts_with(|c: char| c.is_alphanumeric() || "\"“(".contains(c))
        && letters * 2 > sentence.chars().count()
}

/// Sentences about the document itself, not about its subject.
fn points_elsewhere(sentence: &str) -> bool {
    let lower = sentence.to_lowercase();
    [
        "this section",
        "this chapter",
        "this document",
        "the following",
        "as follows",
        "see below",
        "above",
        "the table below",
        "listed below",
        "this page",
        "next section",
        "this manual",
        "this list",
        "this table",
    ]
    .iter()
    .any(|phrase| lower.contains(phrase))
}
