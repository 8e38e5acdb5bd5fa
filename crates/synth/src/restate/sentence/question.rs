//! Questions that a sentence answers.

use super::super::{Pool, Way};
use super::clause::{self, Clause, Verb};
use crate::english;

pub(super) fn questions(sentence: &str, pool: &mut Pool) {
    conditions(sentence, pool);
    orders(sentence, pool);
    let (_, main) = clause::split_front(sentence);
    if is_order(main) {
        return;
    }
    // Of two main clauses only the first is asked about.
    let whole =
        [", and ", ", but ", ", so ", ", or "].iter().filter_map(|mark| main.find(mark)).min();
    let end = whole.map_or(sentence.len(), |end| sentence.len() - main.len() + end);
    let Some(clause) = clause::parse(&sentence[..end]) else { return };
    subject_questions(&clause, pool);
    if !clause.rest.contains(',') {
        predicate_questions(&clause, pool);
        adverbial_questions(&clause, &sentence[..end], pool);
    }
}

/// `If A, B`: what follows from A, and when B holds.
fn conditions(sentence: &str, pool: &mut Pool) {
    let (condition, consequence) =
        match (clause::split_front(sentence), clause::split_back(sentence)) {
            ((Some(front), main), _) => (front, main.to_owned()),
            ((None, _), Some((main, back))) => (back.to_owned(), main.to_owned()),
            _ => return,
        };
    let Some(inside) = english::inside_sentence(&condition) else { return };
    let (opening, order) = (english::capitalise(&condition), is_order(&consequence));
    let what = if order { "what should you do?" } else { "what applies?" };
    pool.ask(Way::Question, &format!("{opening}, {what}"), &consequence);
    let what = if order { "What should you do" } else { "What holds" };
    pool.ask(Way::Question, &format!("{what} {inside}?"), &consequence);
    pool.ask(Way::Question, &format!("What is the rule {inside}?"), &consequence);
    let inner = english::inside_sentence(&consequence).unwrap_or_else(|| consequence.clone());
    let inner = if order { english::inside_order(&consequence) } else { inner };
    pool.ask(Way::Reverse, &format!("In which case does this apply: {inner}?"), &condition);
    if order {
        pool.ask(Way::Reverse, &format!("When should you {inner}?"), &condition);
    } else if let Some(Clause { subject, verb: Verb::Auxiliary(verb), rest, front: None }) =
        clause::parse(&consequence)
        && (!is_state(&verb) || rest.split_whitespace().next().is_some_and(english::is_participle))
    {
        let asked = format!("When {}?", inverted(&verb, &subject, &rest));
        pool.ask(Way::Reverse, &asked, &condition);
    }
}

/// `Clean the strainer every 14 days`.
fn orders(sentence: &str, pool: &mut Pool) {
    let (front, main) = clause::split_front(sentence);
    if !is_order(main) || front.is_some() {
        return;
    }
    for adverbial in adverbials(main) {
        let rest = english::inside_order(&adverbial.without);
        for verb in ["should you", "do you have to", "must you"] {
            pool.ask(
                Way::Question,
                &format!("{} {verb} {rest}?", adverbial.asked),
                &adverbial.answer,
            );
        }
        if ["How often", "When", "After how long"].contains(&adverbial.asked.as_str()) {
            let asked = format!("What should you do {}?", adverbial.phrase);
            pool.ask(Way::Reverse, &asked, &adverbial.without);
        }
    }
}

fn is_state(verb: &str) -> bool {
    ["is", "are", "was", "were"].contains(&verb)
}

fn is_order(text: &str) -> bool {
    let first = text.split_whitespace().next().unwrap_or("").to_lowercase();
    english::is_verb_base(&first)
        || (first == "do" || first == "never") && english::word_count(text) > 3
}

/// The subject asked for: `Who signs the form?`.
fn subject_questions(clause: &Clause, pool: &mut Pool) {
    let person = english::is_person(&clause.subject);
    let plural = english::is_plural(&clause.subject);
    let many = plural
        && matches!(&clause.verb, Verb::Auxiliary(verb) if verb == "are")
        && !clause.rest.split_whitespace().next().is_some_and(english::is_participle);
    if many {
        pool.ask(Way::Reverse, &format!("Which ones are {}?", clause.rest), &clause.subject);
        return;
    }
    let predicate = match &clause.verb {
        Verb::Auxiliary(verb) => format!("{} {}", singular_verb(verb), clause.rest),
        Verb::Full { base, form } if plural => {
            format!("{} {}", third(base).unwrap_or(form.clone()), clause.rest)
        }
        Verb::Full { form, .. } => format!("{form} {}", clause.rest),
    };
    let front = clause.front.as_ref().map_or(String::new(), |front| format!("{front}, "));
    let who = match (person, front.is_empty()) {
        (true, true) => "Who",
        (true, false) => "who",
        (false, true) => "What",
        (false, false) => "what",
    };
    let subject = &clause.subject;
    pool.ask(Way::Reverse, &format!("{front}{who} {predicate}?"), subject);
    let full = predicate.split_whitespace().next().unwrap_or("");
    if front.is_empty() && !["is", "has"].contains(&full) {
        let name = if person { "Name who" } else { "Name what" };
        pool.ask(Way::Reverse, &format!("{name} {predicate}."), subject);
    } else if front.is_empty() {
        pool.ask(
            Way::Reverse,
            &format!("Of {} is this true: {predicate}?", if person { "whom" } else { "what" }),
            subject,
        );
    }
}

fn singular_verb(verb: &str) -> String {
    verb.replace("are", "is").replace("were", "was").replace("have", "has")
}

fn third(base: &str) -> Option<String> {
    [
        format!("{base}s"),
        format!("{base}es"),
        format!("{}ies", base.strip_suffix('y').unwrap_or(base)),
    ]
    .into_iter()
    .find(|form| english::base_of_third(form) == Some(base))
}

/// What is said of the subject: `What must the operator do?`.
fn predicate_questions(clause: &Clause, pool: &mut Pool) {
    let subject = inside(&clause.subject);
    let front = clause.front.as_ref().map_or(String::new(), |front| format!("{front}, "));
    let open = |text: &str| {
        if front.is_empty() { english::capitalise(text) } else { format!("{front}{text}") }
    };
    let first = clause.rest.split_whitespace().next().unwrap_or("");
    match &clause.verb {
        Verb::Auxiliary(verb) if is_state(verb) => {
            if ["a", "an", "the", "one"].contains(&first) {
                pool.ask(Way::Question, &open(&format!("what {verb} {subject}?")), &clause.rest);
            } else if english::is_participle(first) {
                pool.ask(
                    Way::Question,
                    &open(&format!("what is done with {subject}?")),
                    &format!("{} {verb} {}", clause.subject, clause.rest),
                );
            } else if first.starts_with(|c: char| c.is_ascii_digit()) {
                pool.ask(
                    Way::Question,
                    &open(&format!("how much {verb} {subject}?")),
                    &clause.rest,
                );
                pool.ask(Way::Question, &open(&format!("what {verb} {subject}?")), &clause.rest);
            }
        }
        Verb::Auxiliary(verb) if !["has", "have"].contains(&verb.as_str()) => {
            let (start, negation) = verb.split_once(' ').unwrap_or((verb, ""));
            let done = first == "be";
            let what = if done { "be done with" } else { "do" };
            let asked = match done {
                true => format!("what {start} {negation} {what} {subject}?"),
                false => format!("what {start} {subject} {negation} {what}?"),
            };
            let asked = asked.split_whitespace().collect::<Vec<_>>().join(" ");
            pool.ask(
                Way::Question,
                &open(&asked),
                &format!("{} {verb} {}", clause.subject, clause.rest),
            );
        }
        Verb::Auxiliary(verb) => {
            let does = if verb == "has" { "does" } else { "do" };
            pool.ask(Way::Question, &open(&format!("what {does} {subject} have?")), &clause.rest);
        }
        Verb::Full { base, .. } => {
            let does = if english::is_plural(&clause.subject) { "do" } else { "does" };
            if ["the", "a", "an", "all", "every", "each", "no"].contains(&first)
                || first.starts_with(|c: char| c.is_ascii_digit())
            {
                pool.ask(
                    Way::Question,
                    &open(&format!("what {does} {subject} {base}?")),
                    &clause.rest,
                );
            }
            pool.ask(
                Way::Question,
                &open(&format!("what {does} {subject} do?")),
                &format!("{} {} {}", clause.subject, form(&clause.verb), clause.rest),
            );
        }
    }
}

fn form(verb: &Verb) -> &str {
    match verb {
        Verb::Auxiliary(word) => word,
        Verb::Full { form, .. } => form,
    }
}

/// Time, place, frequency, reason: `How often must the strainer be cleaned?`.
fn adverbial_questions(clause: &Clause, sentence: &str, pool: &mut Pool) {
    if clause.front.is_some() {
        return;
    }
    let subject = inside(&clause.subject);
    let first = clause
        .rest
        .split_whitespace()
        .find(|w| !["only", "always", "never", "also", "then", "first"].contains(w));
    let state = matches!(&clause.verb, Verb::Auxiliary(verb) if is_state(verb));
    if state && !first.is_some_and(english::is_participle) {
        return;
    }
    for adverbial in adverbials(&clause.rest) {
        let Adverbial { asked, without, answer, phrase } = adverbial;
        let question = match &clause.verb {
            Verb::Auxiliary(verb) if ["has", "have"].contains(&verb.as_str()) => {
                let does = if verb == "has" { "does" } else { "do" };
                format!("{does} {subject} have {without}")
            }
            Verb::Auxiliary(verb) => inverted(verb, &subject, &without),
            Verb::Full { base, .. } => {
                let does = if english::is_plural(&clause.subject) { "do" } else { "does" };
                format!("{does} {subject} {base} {without}")
            }
        };
        let question = question.trim().to_owned();
        pool.ask(Way::Question, &format!("{asked} {question}?"), &answer);
        pool.ask(
            Way::Question,
            &format!("{asked} {question}?"),
            &format!("{}.", sentence.trim_end_matches('.')),
        );
        pool.ask(
            Way::Question,
            &format!("Can you tell me: {} {question}?", lower(&asked)),
            &answer,
        );
        pool.ask(
            Way::Question,
            &format!("A new colleague asks: {} {question}?", lower(&asked)),
            &answer,
        );
        let said = format!("{} {} {without}", clause.subject, form(&clause.verb));
        pool.ask(Way::Gap, &format!("Complete: {} …", said.trim()), &phrase);
    }
}

fn inverted(verb: &str, subject: &str, rest: &str) -> String {
    let subject = inside(subject);
    match verb.split_once(' ') {
        Some((start, negation)) => format!("{start} {subject} {negation} {rest}"),
        None => format!("{verb} {subject} {rest}"),
    }
}

fn inside(subject: &str) -> String {
    english::inside_sentence(subject).unwrap_or_else(|| subject.to_owned())
}

fn lower(text: &str) -> String {
    text.chars()
        .next()
        .map_or(String::new(), |c| c.to_lowercase().chain(text.chars().skip(1)).collect())
}

/// A phrase of time, place, frequency or measure, and the question that asks for it.
struct Adverbial {
    asked: String,
    /// What is left without the phrase.
    without: String,
    answer: String,
    phrase: String,
}

const TIME_UNITS: &[&str] = &[
    "second", "seconds", "minute", "minutes", "hour", "hours", "day", "days", "week", "weeks",
    "month", "months", "year", "years", "shift", "shifts", "min", "h", "s", "working",
];

/// Participles after which a phrase with `in`, `on`, `at` is a place.
const PLACED: &[&str] = &[
    "kept",
    "stored",
    "located",
    "found",
    "hung",
    "parked",
    "placed",
    "filed",
    "archived",
    "mounted",
    "left",
    "held",
    "laid",
    "posted",
    "displayed",
    "installed",
    "fitted",
    "hangs",
    "stands",
    "lies",
    "sits",
    "stand",
    "lie",
    "written",
    "recorded",
    "entered",
    "noted",
    "stamped",
];

fn adverbials(text: &str) -> Vec<Adverbial> {
    let tokens: Vec<&str> = text.split_whitespace().collect();
    let mut found = Vec::new();
    for start in 0..tokens.len() {
        // A phrase ends at the sentence's end or at a comma; a later one is found by itself.
        let end = (start..tokens.len())
            .find(|&i| tokens[i].ends_with([',', ';']))
            .unwrap_or(tokens.len() - 1);
        let Some((asked, length)) = asked_for(&tokens, start, end) else { continue };
        let phrase = tokens[start..start + length].join(" ");
        let without = [&tokens[..start], &tokens[start + length..]].concat().join(" ");
        let phrase = phrase.trim_end_matches([',', ';']).to_owned();
        let dangling = without.trim_end_matches([',', ';']).to_owned();
        if english::word_count(&dangling) == 0 && !["How often", "When"].contains(&asked.as_str()) {
            continue;
        }
        found.push(Adverbial { asked, without: dangling, answer: phrase.clone(), phrase });
    }
    found
}

/// The question word for the phrase that begins at `start` and ends by `end`, and its length in
/// words.
fn asked_for(tokens: &[&str], start: usize, end: usize) -> Option<(String, usize)> {
    let at = |index: usize| {
        tokens.get(start + index).map_or("", |token| token.trim_end_matches([',', ';', '.']))
    };
    let (word, second, third) = (at(0), at(1), at(2));
    let to_end = end + 1 - start;
    let is_last = start + to_end == tokens.len();
    let numeric = is_numeric(second);
    let timed = numeric && TIME_UNITS.contains(&third);
    let ends_at = |length: usize| {
        start + length == tokens.len()
            || tokens.get(start + length - 1).is_some_and(|token| token.ends_with(','))
    };
    let measured = (2..=4).find(|&length| ends_at(length)).unwrap_or(3);
    let before = if start == 0 { "" } else { tokens[start - 1] };
    if let Some(length) = frequency(word, second, to_end) {
        return fitting(tokens, start, "How often", length);
    }
    let (asked, length) = match word {
        "within" if timed => ("Within what time", measured),
        "for" if timed => ("For how long", measured),
        "after" if timed => ("After how long", to_end),
        "until" if is_last => ("Until when", to_end),
        "at" | "to" | "below" | "above" | "under" | "over" if numeric => {
            (measure(word, third)?, measured)
        }
        "by" if numeric => ("By how much", measured),
        "by" if english::is_participle(before) => {
            let agent = tokens[start + 1..start + to_end].join(" ");
            (english::is_person(&agent).then_some("By whom")?, to_end)
        }
        "before" | "when" | "if" | "after" | "unless" | "while" if is_last && to_end >= 3 => {
            ("When", to_end)
        }
        "because" if is_last => ("Why", to_end),
        "in" | "on" | "at" | "behind" | "beside" | "under" | "inside" | "near"
            if PLACED.contains(&before) && to_end <= 9 && !numeric =>
        {
            ("Where", to_end)
        }
        _ => return None,
    };
    fitting(tokens, start, asked, length)
}

fn fitting(tokens: &[&str], start: usize, asked: &str, length: usize) -> Option<(String, usize)> {
    (start + length <= tokens.len()).then(|| (asked.to_owned(), length))
}

fn is_numeric(word: &str) -> bool {
    const NUMBERS: &[&str] = &["one", "two", "three", "four", "five", "six", "ten", "half"];
    word.starts_with(|c: char| c.is_ascii_digit()) || NUMBERS.contains(&word)
}

/// The length of `every 14 days`, `once a week`, `daily`.
fn frequency(word: &str, second: &str, to_end: usize) -> Option<usize> {
    const SPANS: &[&str] = &[
        "day",
        "week",
        "month",
        "year",
        "shift",
        "quarter",
        "morning",
        "hour",
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
    ];
    const ADVERBS: &[&str] =
        &["daily", "weekly", "monthly", "quarterly", "yearly", "annually", "hourly"];
    match word {
        "every" if is_numeric(second) && to_end <= 4 => Some(to_end),
        "every" if ["second", "third"].contains(&second) => Some(3),
        "every" | "each" if SPANS.contains(&second) => Some(2),
        "once" | "twice" if ["a", "per", "every", "each", "in"].contains(&second) => Some(3),
        _ => ADVERBS.contains(&word).then_some(1),
    }
}

fn measure(preposition: &str, unit: &str) -> Option<&'static str> {
    Some(match (preposition, unit) {
        ("at", "°C" | "degrees") => "At what temperature",
        ("at", "bar" | "mbar") => "At what pressure",
        ("at", "rpm") => "At what speed",
        ("at", "percent" | "%" | "hours" | "mm") => "At what value",
        ("to", "°C" | "degrees") => "To what temperature",
        ("to", "bar" | "mbar") => "To what pressure",
        ("to", "Nm" | "newton") => "To what torque",
        ("to", "percent" | "%" | "mm" | "litres" | "rpm" | "kg" | "hours") => "To what value",
        ("below" | "under", _) => "Below what value",
        ("above" | "over", _) => "Above what value",
        _ => return None,
    })
}
