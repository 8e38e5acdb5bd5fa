//! What a teacher's example must satisfy before a model is trained on it.

use std::collections::HashSet;

use crate::english;

/// Shorter quotes bear nothing out.
const SHORTEST_QUOTE: usize = 4;
const LONGEST_ANSWER: usize = 80;
/// Share of the answer's content words that the quote must hold.
const SUPPORT: f64 = 0.6;

/// A teacher's question with its answer and the words it rests on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Triple {
    pub(crate) question: String,
    pub(crate) answer: String,
    pub(crate) quote: String,
}

/// Why the triple is refused, or `None` if it may be trained on. `known` holds the normalised
/// questions so far.
pub(crate) fn refusal(triple: &Triple, passage: &str, known: &HashSet<String>) -> Option<String> {
    let Triple { question, answer, quote } = triple;
    if question.trim().is_empty() || answer.trim().is_empty() {
        return Some("question or answer is empty".into());
    }
    if english::word_count(question) < 3 || english::word_count(answer) > LONGEST_ANSWER {
        return Some("question too short or answer too long".into());
    }
    if let Some(phrase) = pointing(question).or_else(|| pointing(answer)) {
        return Some(format!("not self-contained: {phrase:?}"));
    }
    let quoted = normalise(quote);
    if quoted.split(' ').count() < SHORTEST_QUOTE {
        return Some(format!("evidence has fewer than {SHORTEST_QUOTE} words"));
    }
    if !format!(" {} ", normalise(passage)).contains(&format!(" {quoted} ")) {
        return Some("evidence is not in the document".into());
    }
    if !supported(answer, quote, question) {
        return Some("answer is not supported by its evidence".into());
    }
    known.contains(&normalise(question)).then(|| "question is a duplicate".into())
}

/// Why a rewritten passage is refused: a number or code of the original is missing, or one is
/// new.
pub(crate) fn rewriting_refusal(rewritten: &str, passage: &str) -> Option<String> {
    let (before, after) = (figures(passage), figures(rewritten));
    if english::word_count(rewritten) * 2 < english::word_count(passage) {
        return Some("rewriting is less than half as long".into());
    }
    if let Some(lost) = before.iter().find(|figure| !after.contains(*figure)) {
        return Some(format!("rewriting lacks {lost:?}"));
    }
    let added = after.iter().find(|figure| !before.contains(*figure))?;
    Some(format!("rewriting adds {added:?}"))
}

/// Words in lower case, one space between, without Markdown and punctuation.
pub(crate) fn normalise(text: &str) -> String {
    english::words(&text.replace(['*', '`', '|', '_'], " ")).join(" ")
}

/// A phrase that is understood only beside the source.
fn pointing(text: &str) -> Option<&'static str> {
    const PHRASES: &[&str] = &[
        "the text",
        "the passage",
        "this passage",
        "this section",
        "the section",
        "this document",
        "the document",
        "the above",
        "mentioned above",
        "as above",
        "above?",
        "described above",
        "listed above",
        "the table",
        "this table",
        "the excerpt",
        "the following",
        "below?",
        "the author",
        "according to the article",
        "the given",
        "provided context",
        "the context",
    ];
    let lower = text.to_lowercase();
    PHRASES.iter().copied().find(|phrase| lower.contains(phrase))
}

/// The answer's numbers must all stand in the quote, and most of its content words in the quote
/// or the question.
fn supported(answer: &str, quote: &str, question: &str) -> bool {
    let in_quote: HashSet<String> = english::words(quote).into_iter().collect();
    let in_question: HashSet<String> = english::words(question).into_iter().collect();
    let words = english::words(answer);
    if words.iter().any(|w| w.chars().any(|c| c.is_ascii_digit()) && !in_quote.contains(w)) {
        return false;
    }
    let content: Vec<&String> = words.iter().filter(|w| !is_filler(w)).collect();
    let found = content.iter().filter(|w| in_quote.contains(**w) || in_question.contains(**w));
    let own = content.iter().filter(|w| in_quote.contains(**w)).count();
    own > 0 && found.count() as f64 >= SUPPORT * content.len() as f64
}

fn is_filler(word: &str) -> bool {
    word.len() <= 2 && !word.chars().any(|c| c.is_ascii_digit())
        || english::is_auxiliary(word)
        || english::is_preposition(word)
        || ["the", "and", "that", "this", "yes", "not", "its", "you", "should"].contains(&word)
}

fn figures(text: &str) -> HashSet<String> {
    english::words(text).into_iter().filter(|w| w.chars().any(|c| c.is_ascii_digit())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSAGE: &str = "## Strainer\n\nThe **strainer** at washer W2 is cleaned every\n14 days by \
                           the washer technician.";

    fn check(question: &str, answer: &str, quote: &str, expected: Option<&str>) {
        let triple =
            Triple { question: question.into(), answer: answer.into(), quote: quote.into() };
        let found = refusal(&triple, PASSAGE, &HashSet::from(["who cleans it at w2".to_owned()]));
        assert_eq!(found.as_deref(), expected);
    }

    #[test]
    fn only_borne_out_answers_are_accepted() {
        let quote = "the strainer at washer W2 is cleaned every 14 days";
        let asked = "How often is the strainer at W2 cleaned?";
        check(asked, "Every 14 days.", quote, None);
        check(asked, "Every 7 days.", quote, Some("answer is not supported by its evidence"));
        check(
            asked,
            "By a robot from Lund.",
            quote,
            Some("answer is not supported by its evidence"),
        );
        check(
            asked,
            "Every 14 days.",
            "cleaned every 14 weeks",
            Some("evidence is not in the document"),
        );
        check(asked, "Every 14 days.", "14 days", Some("evidence has fewer than 4 words"));
        check(asked, "", quote, Some("question or answer is empty"));
        check(
            "How often, according to the text?",
            "Every 14 days.",
            quote,
            Some("not self-contained: \"the text\""),
        );
        check("Who cleans it at W2?", "Every 14 days.", quote, Some("question is a duplicate"));
    }

    #[test]
    fn rewritings_keep_every_figure() {
        assert_eq!(
            rewriting_refusal("At washer W2 the strainer has its cleaning every 14 days.", PASSAGE),
            None
        );
        let lost = rewriting_refusal(
            "At the washer the strainer is cleaned every 14 days, mind.",
            PASSAGE,
        );
        assert_eq!(lost.as_deref(), Some("rewriting lacks \"w2\""));
    }
}
