//! Forms of a sentence of running text.

use super::{Pool, Way, fill, header};
use crate::english;
use crate::facts::Scope;

mod clause;
mod question;

pub(super) fn sentence(scope: &Scope, text: &str, pool: &mut Pool) {
    let sentences = english::sentences(text);
    let topic = scope.section.as_deref().unwrap_or(&scope.title);
    statements(topic, text, pool);
    if let [only] = sentences.as_slice() {
        let bare = only.trim_end_matches('.');
        for part in bare.split("; ") {
            question::questions(part, pool);
        }
        for variant in rewordings(bare) {
            if !variant.contains(';') {
                question::questions(&variant, pool);
            }
            pool.state(variant);
        }
    }
    gaps(text, pool);
    told(topic, text, pool);
}

const STATEMENTS: &[&str] = &[
    "{text}",
    "{Topic}: {text}",
    "Keep in mind: {text}",
    "{Topic} – {text}",
    "One point about “{topic}”: {text}",
    "It holds that {inside}",
    "About {topic}: {text}",
    "Everyone should know that {inside}",
    "{text} That is what “{topic}” says.",
];

fn statements(topic: &str, text: &str, pool: &mut Pool) {
    let inside = english::inside_sentence(text);
    let capital = english::capitalise(topic);
    for template in STATEMENTS {
        if template.contains("{inside}") && (inside.is_none() || english::sentences(text).len() > 1)
            || template.to_lowercase().contains("{topic}") && topic.is_empty()
        {
            continue;
        }
        let inside = inside.as_deref().unwrap_or("");
        let values = [("text", text), ("inside", inside), ("topic", topic), ("Topic", &capital)];
        pool.state(fill(template, &values));
    }
}

/// What the topic's sentences say, asked for without hinting at the answer.
fn told(topic: &str, text: &str, pool: &mut Pool) {
    let clause = clause::parse(text.trim_end_matches('.'));
    if let Some(clause) = clause.filter(|clause| english::word_count(&clause.subject) >= 2) {
        let subject = english::inside_sentence(&clause.subject).unwrap_or(clause.subject);
        for question in [
            format!("What do you know about {subject}?"),
            format!("What does “{topic}” say about {subject}?"),
            format!("Tell me something about {subject}."),
        ] {
            pool.ask(Way::Question, &question, text);
        }
    }
}

/// Phrases of rules and their equivalents. Each stands between spaces in the sentence.
const EQUIVALENTS: &[(&str, &str)] = &[
    ("must be", "has to be"),
    ("must be", "needs to be"),
    ("must not be", "may not be"),
    ("may not be", "must never be"),
    ("must never", "must not ever"),
    ("at least", "no less than"),
    ("at most", "no more than"),
    ("not more than", "at most"),
    ("more than", "over"),
    ("less than", "under"),
    ("at once", "immediately"),
    ("is allowed to", "may"),
    ("are allowed to", "may"),
    ("every day", "daily"),
    ("every week", "weekly"),
    ("once a week", "weekly"),
    ("every month", "monthly"),
    ("twice a year", "every six months"),
    ("twice a day", "two times a day"),
    ("in addition", "besides"),
    ("is located in", "is found in"),
    ("is kept in", "has its place in"),
    ("is kept at", "is held at"),
    ("is stored in", "is kept in"),
    ("are stored in", "are kept in"),
    ("replaced", "exchanged"),
    ("replaced", "renewed"),
    ("checked", "inspected"),
    ("inspected", "checked"),
    ("signed by", "given the signature of"),
    ("needed", "required"),
    ("required", "needed"),
    ("permitted", "allowed"),
    ("allowed", "permitted"),
    ("forbidden", "not allowed"),
    ("starts", "begins"),
    ("begins", "starts"),
    ("ends", "finishes"),
    ("within", "in no more than"),
    ("minutes", "min"),
    ("°C", "degrees Celsius"),
    ("percent", "%"),
];

/// The sentence with one phrase put differently, and with its last clause brought to the front.
fn rewordings(sentence: &str) -> Vec<String> {
    let mut variants = Vec::new();
    let padded = format!(" {sentence} ");
    for (from, to) in EQUIVALENTS {
        let from = format!(" {from} ");
        let plural = from.contains(" must be ")
            && padded.split_once(&from).is_some_and(|(subject, _)| english::is_plural(subject));
        let to = if plural {
            to.replace("has to", "have to").replace("needs to", "need to")
        } else {
            (*to).into()
        };
        let splits_number = *from == *" minutes " || *from == *" percent ";
        let before_number = padded
            .split_once(&from)
            .is_some_and(|(before, _)| before.ends_with(|c: char| c.is_ascii_digit()));
        if padded.matches(&from).count() == 1 && (!splits_number || before_number) {
            variants.push(padded.replace(&from, &format!(" {to} ")).trim().to_owned());
        }
    }
    variants.truncate(4);
    variants.extend(clause::fronted(sentence));
    variants
}

/// Gaps for numbers with their units, codes, and the sentence's end.
fn gaps(text: &str, pool: &mut Pool) {
    let tokens: Vec<&str> = text.split_whitespace().collect();
    for (index, token) in tokens.iter().enumerate() {
        let bare = token.trim_matches(|c: char| ",.;:()\"“”?!".contains(c));
        let number = bare.starts_with(|c: char| c.is_ascii_digit());
        if !number && !english::is_code(bare) {
            continue;
        }
        let gap = token.replace(bare, "____");
        let gapped = [&tokens[..index], &[gap.as_str()], &tokens[index + 1..]].concat();
        let next =
            tokens.get(index + 1).map(|next| next.trim_matches(|c: char| ",.;:()".contains(c)));
        let unit = next.filter(|_| number && !token.ends_with([',', '.', ';', ':', ')']));
        let answer = match unit {
            Some(unit) if header::is_unit_word(unit) => format!("{bare} {unit}"),
            _ => bare.to_owned(),
        };
        let asked = gapped.join(" ");
        pool.ask(Way::Gap, &format!("Fill in the gap: {asked}"), &answer);
        pool.ask(Way::Gap, &format!("Which value is missing? {asked}"), &answer);
    }
    // Two cuts, at different places, each before a preposition or after a verb.
    let openings = ["Complete:", "How does this go on?", "Finish the sentence:"];
    let cuts = (tokens.len() * 2 / 5..tokens.len().saturating_sub(1))
        .filter(|&i| english::is_preposition(tokens[i]) || english::is_auxiliary(tokens[i]));
    for (cut, opening) in cuts.zip(openings).filter(|_| tokens.len() >= 7) {
        let (begun, left) = tokens.split_at(cut + 1);
        pool.ask(Way::Gap, &format!("{opening} {} …", begun.join(" ")), &left.join(" "));
    }
}
