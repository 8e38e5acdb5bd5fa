//! The parts of a simple English sentence.

use crate::english;

/// `subject verb rest`, with what stands before it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Clause {
    /// `If the pump stops`, without its comma.
    pub(super) front: Option<String>,
    pub(super) subject: String,
    pub(super) verb: Verb,
    pub(super) rest: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verb {
    /// `is`, `must`, `may not`: comes before the subject in a question.
    Auxiliary(String),
    /// `signs`, `sign`: a question needs `does` or `do`.
    Full { base: &'static str, form: String },
}

const LONGEST_SUBJECT: usize = 9;

/// Words that open a subordinate clause.
const OPENINGS: &[&str] = &[
    "if",
    "when",
    "before",
    "after",
    "once",
    "unless",
    "until",
    "while",
    "whenever",
    "as soon as",
];

/// Splits a sentence without its full stop; `None` where it is not simple enough to be sure of.
pub(super) fn parse(sentence: &str) -> Option<Clause> {
    let (front, main) = split_front(sentence);
    let tokens: Vec<&str> = main.split_whitespace().collect();
    let limit = tokens.len().min(LONGEST_SUBJECT + 1);
    for index in 1..limit {
        let word = tokens[index];
        let before = tokens[index - 1].to_lowercase();
        if before.ends_with([',', ';', ':'])
            || ["that", "which", "who", "where"].contains(&before.as_str())
        {
            return None;
        }
        let subject = tokens[..index].join(" ");
        if english::is_auxiliary(word) {
            let negated = tokens.get(index + 1).is_some_and(|w| ["not", "never"].contains(w));
            let verb =
                if negated { format!("{word} {}", tokens[index + 1]) } else { word.to_owned() };
            let rest = tokens[index + 1 + usize::from(negated)..].join(" ");
            return accept(front, subject, Verb::Auxiliary(verb), rest);
        }
        if let Some(base) = full_verb(&subject, word, tokens.get(index + 1).copied()) {
            let verb = Verb::Full { base, form: word.to_owned() };
            return accept(front, subject, verb, tokens[index + 1..].join(" "));
        }
    }
    None
}

fn accept(front: Option<String>, subject: String, verb: Verb, rest: String) -> Option<Clause> {
    let first = subject.split_whitespace().next()?.to_lowercase();
    let nothing_said = english::word_count(&rest) < 1;
    let no_subject = english::is_pronoun(&first)
        || english::is_preposition(&first)
        || ["there", "if", "when", "what", "how", "where", "who", "not", "never", "as", "while"]
            .contains(&first.as_str())
        || OPENINGS.contains(&first.as_str());
    (!nothing_said && !no_subject).then_some(Clause { front, subject, verb, rest })
}

/// A third person after a singular subject, or a base form after a plural one.
fn full_verb(subject: &str, word: &str, next: Option<&str>) -> Option<&'static str> {
    let last = subject.split_whitespace().last()?.to_lowercase();
    let article = ["the", "a", "an", "each", "every", "no", "any", "this", "and", "or"]
        .contains(&last.as_str());
    if article || english::is_preposition(&last) || next.is_none_or(english::is_auxiliary) {
        return None;
    }
    // "The pump controls are …": a verb further on shows that this one is a noun.
    match english::base_of_third(word) {
        Some(base) if !english::is_plural(subject) => Some(base),
        Some(_) => None,
        None if english::is_plural(subject) => english::base_of_third(&format!("{word}s")),
        None => None,
    }
}

/// `If A, B` → (`If A`, `B`).
pub(super) fn split_front(sentence: &str) -> (Option<String>, &str) {
    let lower = sentence.to_lowercase();
    let opens = OPENINGS.iter().any(|opening| lower.starts_with(&format!("{opening} ")));
    match sentence.split_once(", ") {
        Some((front, main)) if opens && english::word_count(front) >= 3 && is_whole(main) => {
            (Some(front.to_owned()), main)
        }
        _ => (None, sentence),
    }
}

/// Not the second member of an enumeration.
fn is_whole(main: &str) -> bool {
    let first = main.split_whitespace().next().unwrap_or("");
    !["and", "or", "but"].contains(&first) && english::word_count(main) >= 3
}

/// `B if A` → (`B`, `if A`); the last such clause.
pub(super) fn split_back(sentence: &str) -> Option<(&str, &str)> {
    let found =
        OPENINGS.iter().filter_map(|opening| sentence.rfind(&format!(" {opening} "))).max()?;
    let (main, back) = (sentence[..found].trim_end_matches(','), sentence[found..].trim());
    let long_enough = english::word_count(main) >= 4 && english::word_count(back) >= 3;
    let loose =
        ["and", "or", "long", "shortly", "just", "day", "even", "than", "not", "only", "also"];
    let last = main.split_whitespace().last().unwrap_or("");
    let plain = !back.contains(',') && !main.contains(',') && !loose.contains(&last);
    (long_enough && plain).then_some((main, back))
}

/// The sentence with its condition or time at the other end.
pub(super) fn fronted(sentence: &str) -> Option<String> {
    if let (Some(front), main) = split_front(sentence) {
        let front = english::inside_sentence(&front)?;
        return Some(format!("{} {front}", english::capitalise(main)));
    }
    let (main, back) = split_back(sentence)?;
    let main = english::inside_sentence(main)?;
    Some(format!("{}, {main}", english::capitalise(back)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sentence: &str, front: Option<&str>, subject: &str, verb: &str, rest: &str) {
        let clause = parse(sentence).expect(sentence);
        let found = match &clause.verb {
            Verb::Auxiliary(word) => word.clone(),
            Verb::Full { form, .. } => form.clone(),
        };
        assert_eq!(
            (
                clause.front.as_deref(),
                clause.subject.as_str(),
                found.as_str(),
                clause.rest.as_str()
            ),
            (front, subject, verb, rest)
        );
    }

    #[test]
    fn clauses_fall_into_parts() {
        check("The shift lead signs the form", None, "The shift lead", "signs", "the form");
        check(
            "If the pump stops, the operator must call the workshop",
            Some("If the pump stops"),
            "the operator",
            "must",
            "call the workshop",
        );
        check("Two persons may not open it", None, "Two persons", "may not", "open it");
        assert_eq!(parse("It is kept dry"), None);
        assert_eq!(parse("In the morning the valve is opened"), None);
    }

    #[test]
    fn conditions_change_ends() {
        assert_eq!(
            fronted("The valve is closed before the pump is started").as_deref(),
            Some("Before the pump is started, the valve is closed")
        );
        assert_eq!(
            fronted("If the lamp is red, the door stays shut").as_deref(),
            Some("The door stays shut if the lamp is red")
        );
    }
}
