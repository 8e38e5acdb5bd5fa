//! Terms with their explanations, and labels with their values.

use super::{Attribute, Content, Fact, Scope, Subject, clean_key, clean_value};
use crate::english;
use crate::markdown::Span;
use crate::restate::header;

const LONGEST_TERM: usize = 7;
const LONGEST_LABEL: usize = 5;
/// A label's value is short; an explanation is not.
const LONGEST_LABEL_VALUE: usize = 12;

/// Splits `**Term**: text`, `Term — text`, `Term: text`.
pub(super) fn split(span: &Span) -> Option<(String, String)> {
    let text = span.text();
    if let Some(lead) = &span.lead {
        let rest = text.strip_prefix(lead.as_str())?.trim_start();
        let marked = lead.ends_with([':', '.']) || rest.starts_with([':', '—', '–', '-', '=']);
        let rest = rest.trim_start_matches([':', '—', '–', '-', '=', ' ']);
        let term = lead.trim_end_matches([':', '.', ' ']);
        if marked && !rest.is_empty() && english::word_count(term) <= LONGEST_TERM {
            return Some((term.to_owned(), rest.to_owned()));
        }
    }
    entry(&text)
}

/// `Term — text`, `Term - text`, `Term: text` without markup.
fn entry(text: &str) -> Option<(String, String)> {
    let (term, rest) = [" — ", " – ", " - ", ": "].iter().find_map(|mark| text.split_once(mark))?;
    let words = english::word_count(term);
    let is_sentence = english::words(term)
        .iter()
        .skip(1)
        .any(|word| english::is_auxiliary(word) || english::base_of_third(word).is_some());
    let usable = (1..=LONGEST_LABEL).contains(&words)
        && !is_sentence
        && !term.contains(['.', ',', ';', '!'])
        && !rest.trim().is_empty();
    usable.then(|| (term.trim().to_owned(), rest.trim().to_owned()))
}

/// A paragraph whose sentences are entries of a glossary: `Kite - a bent plate. Bell puller - …`.
pub(super) fn glossary(scope: &Scope, text: &str, facts: &mut Vec<Fact>) -> bool {
    let sentences = english::sentences(text);
    let entries = sentences.iter().filter(|sentence| entry(sentence).is_some()).count();
    if entries < 2 || entries * 2 < sentences.len() {
        return false;
    }
    for sentence in &sentences {
        match entry(sentence) {
            Some((term, text)) => push(scope, &term, &text, sentence, facts),
            None => super::prose::extract(scope, sentence, facts),
        }
    }
    true
}

/// The parts of an explanation that name an attribute: `lent by the valve hand`, `hook 3`.
fn parts(scope: &Scope, term: &str, text: &str, source: &str, facts: &mut Vec<Fact>) {
    let segments: Vec<&str> = text.trim_end_matches('.').split("; ").collect();
    for segment in segments.iter().filter(|_| segments.len() > 1) {
        let words: Vec<&str> = segment.split_whitespace().collect();
        let passive = words.len() >= 3
            && english::is_participle(words[0])
            && english::is_preposition(words[1]);
        let numbered = words.len() == 2
            && words[0].chars().all(char::is_lowercase)
            && (english::is_code(words[1]) || english::is_bare_number(words[1]));
        let cut = if passive { 2 } else { 1 };
        if passive || numbered {
            let content = Content::Attribute(Attribute {
                subject: Subject { noun: String::new(), key: term.to_owned(), qualifier: None },
                attribute: words[..cut].join(" "),
                value: words[cut..].join(" "),
                identifies: numbered,
                only_of_kind: false,
            });
            facts.push(Fact { scope: scope.clone(), evidence: source.to_owned(), content });
        }
    }
}

/// A paragraph all of whose lines are `Label: value`: attributes of the section's subject.
pub(super) fn label_lines(scope: &Scope, span: &Span, facts: &mut Vec<Fact>) -> bool {
    let lines: Vec<(&str, &str)> = span.lines.iter().filter_map(|l| l.split_once(": ")).collect();
    let labels = lines.iter().all(|(label, value)| {
        english::word_count(label) <= LONGEST_LABEL
            && english::word_count(value) <= LONGEST_LABEL_VALUE
            && label.starts_with(char::is_uppercase)
    });
    if lines.len() < 2 || lines.len() != span.lines.len() || !labels {
        return false;
    }
    for (line, (label, value)) in span.lines.iter().zip(lines) {
        push(scope, label, value, line, facts);
    }
    true
}

/// A term and its explanation; a known label (`Interval: 14 days`) becomes an attribute of the
/// section's subject instead.
pub(super) fn push(scope: &Scope, term: &str, text: &str, source: &str, facts: &mut Vec<Fact>) {
    let Some(term) = clean_key(term) else { return };
    if is_remark(&term) {
        return super::prose::extract(scope, text, facts);
    }
    let digit = !text.contains(';') && text.chars().any(|c| c.is_ascii_digit());
    let known = (header::kind(&term) != header::Kind::Other || digit) && !english::is_code(&term);
    let short = english::word_count(text) <= LONGEST_LABEL_VALUE
        && english::sentences(text).len() == 1
        && !english::words(text).iter().any(|word| english::is_auxiliary(word));
    let topic = scope.section.clone().or_else(|| clean_key(&scope.title));
    if let (true, true, Some(topic), Some(value)) = (known, short, topic, clean_value(text)) {
        let header::Header { phrase, .. } = header::read(&term);
        let subject = Subject { noun: String::new(), key: topic, qualifier: None };
        let content = Content::Property(Attribute {
            subject,
            attribute: phrase,
            value,
            identifies: true,
            only_of_kind: true,
        });
        facts.push(Fact { scope: scope.clone(), evidence: source.to_owned(), content });
        return;
    }
    let sentences = english::sentences(text);
    let Some(first) = sentences.first() else { return };
    let whole = if english::word_count(text) <= super::LONGEST_VALUE { text } else { first };
    if let Some(text) = clean_value(whole) {
        let content = Content::Definition { term: term.clone(), text };
        facts.push(Fact { scope: scope.clone(), evidence: source.to_owned(), content });
    }
    parts(scope, &term, text, source, facts);
    // What follows the first sentence is told of the term, so the term is its section.
    let scope = Scope { title: scope.title.clone(), section: Some(term) };
    super::prose::extract(&scope, &sentences[1..].join(" "), facts);
}

/// `Note:` and the like introduce a sentence, they do not name a subject.
fn is_remark(term: &str) -> bool {
    const REMARKS: &[&str] = &[
        "note",
        "notes",
        "warning",
        "caution",
        "danger",
        "important",
        "tip",
        "example",
        "remark",
        "attention",
        "rule",
        "hint",
        "nb",
        "please note",
    ];
    REMARKS.contains(&term.to_lowercase().as_str())
}
