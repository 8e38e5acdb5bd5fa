//! Forms of definitions, procedures, bullet lists and listings.

use super::header::{self, Grammar};
use super::{Pool, Way, enumerate, fill};
use crate::english;

const DEFINITION_STATEMENTS: &[&str] = &[
    "{Term}: {text}.",
    "{Term} – {text}.",
    "{Term} means this: {text}.",
    "The meaning of “{term}” is: {text}.",
    "What “{term}” stands for: {text}.",
    "{Text}: that is {term}.",
    "{Text}. This is what “{term}” means.",
    "When people here say “{term}”, they mean: {text}.",
    "Under “{term}” we understand: {text}.",
];
const DEFINITION_QUESTIONS: &[&str] = &[
    "What is {the}?",
    "What does “{term}” mean?",
    "What is meant by “{term}”?",
    "Explain {the}.",
    "How is “{term}” defined?",
    "Tell me about {the}.",
    "What do you know about {the}?",
    "What should I know about {the}?",
    "I came across “{term}”. What is it about?",
    "{Term}: what does it say?",
];
const DEFINITION_REVERSE: &[&str] = &[
    "What is this called: {text}?",
    "Which term is meant: {text}?",
    "{Text}. Which term is this?",
    "Which word fits: {text}?",
    "To what does this apply: {text}?",
    "What fits this description: {text}?",
    "Name what is described here: {text}.",
    "{Text}: what is that?",
];

pub(super) fn definition(term: &str, text: &str, pool: &mut Pool) {
    let (inside, opening) = (text.to_owned(), english::capitalise(text));
    let (the, capital) = (english::with_article(term), english::capitalise(term));
    let values = [
        ("the", the.as_str()),
        ("term", term),
        ("Term", &capital),
        ("text", inside.as_str()),
        ("Text", opening.as_str()),
    ];
    for template in DEFINITION_STATEMENTS {
        pool.state(fill(template, &values));
    }
    for (index, template) in DEFINITION_QUESTIONS.iter().enumerate() {
        let answer = if index % 3 == 2 { format!("{capital}: {inside}.") } else { text.to_owned() };
        pool.ask(Way::Question, &fill(template, &values), &answer);
    }
    for template in DEFINITION_REVERSE {
        pool.ask(Way::Reverse, &fill(template, &values), &capital);
    }
    pool.ask(Way::Gap, &format!("Fill in the gap: ____ means: {inside}."), &capital);
    pool.ask(Way::Gap, &format!("Complete: {capital} – …"), text);
}

const LISTING_QUESTIONS: &[&str] = &[
    "Which {nouns} have the {attr} {value}?",
    "Name all {nouns} with the {attr} {value}.",
    "The {attr} is {value}: for which {nouns}?",
    "{Value} is the {attr} of which {nouns}?",
    "List the {nouns} whose {attr} is {value}.",
];

/// For attributes that are no nouns (`filled in by`).
const LABEL_LISTING_QUESTIONS: &[&str] = &[
    "Which {nouns} have the entry “{value}” under “{attr}”?",
    "Name all {nouns} for which “{attr}” is {value}.",
    "“{attr}”: {value}. Which {nouns} are these?",
    "For which {nouns} does “{attr}” say {value}?",
];

pub(super) fn listing(noun: &str, attribute: &str, value: &str, keys: &[String], pool: &mut Pool) {
    let nouns = plural(noun);
    let (all, inside) = (enumerate(keys), value.to_owned());
    let capital = english::capitalise(value);
    let values = [
        ("nouns", nouns.as_str()),
        ("attr", attribute),
        ("value", inside.as_str()),
        ("Value", capital.as_str()),
    ];
    if header::grammar(attribute) != Grammar::Noun {
        for template in LABEL_LISTING_QUESTIONS {
            pool.ask(Way::Reverse, &fill(template, &values), &all);
        }
        pool.state(format!(
            "Under “{attribute}”, these {nouns} have the same entry ({inside}): {all}."
        ));
        pool.state(format!("{}: {inside} – this holds for {all}.", english::capitalise(attribute)));
        return;
    }
    for template in LISTING_QUESTIONS {
        pool.ask(Way::Reverse, &fill(template, &values), &all);
    }
    pool.state(format!("The {nouns} with the {attribute} {inside} are {all}."));
    pool.state(format!("{all} share one {attribute}: {inside}."));
    pool.state(format!("{} ({attribute}) is shared by {} {nouns}: {all}.", capital, keys.len()));
    let asked = format!("How many {nouns} have the {attribute} {inside}?");
    pool.ask(Way::Question, &asked, &format!("{}: {all}", keys.len()));
    let asked = format!("What do {all} have in common?");
    pool.ask(Way::Question, &asked, &format!("The {attribute}: {inside}"));
}

fn plural(noun: &str) -> String {
    match noun.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ if ["s", "sh", "ch", "x"].iter().any(|end| noun.ends_with(end)) => format!("{noun}es"),
        _ => format!("{noun}s"),
    }
}

const ORDINALS: [&str; 12] = [
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth",
];

pub(super) fn step(procedure: &str, number: usize, steps: &[String], pool: &mut Pool) {
    let text = steps[number - 1].as_str();
    let inside = text.to_owned();
    let count = steps.len();
    let topic = format!("“{procedure}”");
    pool.state(format!("Step {number} of {topic}: {inside}."));
    pool.state(format!("In {topic}, step {number} of {count} is: {inside}."));
    if let Some(ordinal) = ORDINALS.get(number - 1) {
        pool.state(format!("The {ordinal} step of {topic} is this: {inside}."));
        pool.ask(Way::Question, &format!("What is the {ordinal} step of {topic}?"), text);
        pool.ask(Way::Question, &format!("{topic}: what comes {ordinal}?"), text);
    }
    pool.ask(Way::Question, &format!("What is step {number} of {topic}?"), text);
    pool.ask(Way::Question, &format!("What do you do in step {number} of {topic}?"), text);
    let asked = format!("Which step of {topic} is this: {inside}?");
    pool.ask(Way::Reverse, &asked, &format!("Step {number}"));
    let asked = format!("To which procedure does this step belong: {inside}?");
    pool.ask(Way::Reverse, &asked, procedure);
    pool.ask(Way::Reverse, &format!("{}. What is this a step of?", text), procedure);
    if number == count {
        pool.state(format!("{topic} ends with this step: {inside}."));
        pool.ask(Way::Question, &format!("What is the last step of {topic}?"), text);
        pool.ask(Way::Question, &format!("With what does {topic} end?"), text);
    }
    if number == 1 {
        pool.state(format!("{topic} begins with this step: {inside}."));
        pool.ask(Way::Question, &format!("With what does {topic} begin?"), text);
        pool.ask(Way::Question, &format!("Where do you start in {topic}?"), text);
    } else {
        neighbours(&topic, &steps[number - 2].clone(), text, pool);
    }
    let rest: Vec<&str> = text.split_whitespace().collect();
    if rest.len() >= 5 {
        let (begun, left) = rest.split_at(rest.len() / 2);
        let asked = format!("Complete step {number} of {topic}: {} …", begun.join(" "));
        pool.ask(Way::Gap, &asked, &left.join(" "));
    }
}

fn neighbours(topic: &str, before: &str, text: &str, pool: &mut Pool) {
    let inside = text.to_owned();
    pool.state(format!("In {topic}, this step: {before}. Then this one: {inside}."));
    pool.state(format!("In {topic}, before this step ({inside}) comes this one: {before}."));
    for question in [
        format!("In {topic}, what comes after this step: {before}?"),
        format!("In {topic}, you have done this: {before}. What comes next?"),
        format!("What follows in {topic} when this is done: {before}?"),
    ] {
        pool.ask(Way::Question, &question, text);
    }
    for question in [
        format!("In {topic}, what comes before this step: {inside}?"),
        format!("In {topic}, what must be done just before this: {inside}?"),
    ] {
        pool.ask(Way::Reverse, &question, before);
    }
}

pub(super) fn procedure(procedure: &str, steps: &[String], pool: &mut Pool) {
    let topic = format!("“{procedure}”");
    let count = steps.len();
    let numbered: Vec<String> = steps
        .iter()
        .enumerate()
        .map(|(i, step)| format!("{}. {}.", i + 1, english::capitalise(step)))
        .collect();
    let flowing = steps.iter().map(|s| s.to_owned()).collect::<Vec<_>>().join("; then ");
    let (all, first, last) = (numbered.join(" "), &steps[0], &steps[count - 1]);
    pool.state(format!("{topic} has {count} steps. {all}"));
    pool.state(format!("{topic} goes like this: {flowing}."));
    pool.state(format!("The steps of {topic}, in order: {flowing}."));
    pool.state(format!(
        "{topic} begins with: {}. It ends with: {}.",
        first.to_owned(),
        last.to_owned()
    ));
    for question in [
        format!("How does {topic} go?"),
        format!("List the steps of {topic}."),
        format!("What are the steps of {topic}?"),
        format!("Walk me through {topic}."),
    ] {
        pool.ask(Way::Question, &question, &all);
    }
    for question in [
        format!("How many steps does {topic} have?"),
        format!("Of how many steps does {topic} consist?"),
    ] {
        pool.ask(Way::Question, &question, &format!("{count} steps"));
    }
    pool.ask(Way::Reverse, &format!("Which procedure goes like this: {flowing}?"), procedure);
}

pub(super) fn items(lead: &str, items: &[String], pool: &mut Pool) {
    let topic = format!("“{lead}”");
    let inside: Vec<String> = items.iter().map(|item| item.to_owned()).collect();
    let (all, reversed) =
        (inside.join("; "), inside.iter().rev().cloned().collect::<Vec<_>>().join("; "));
    pool.state(format!("{}: {all}.", english::capitalise(lead)));
    pool.state(format!("{topic} covers {} points: {all}.", items.len()));
    pool.state(format!("The following belongs to {topic}: {reversed}."));
    for question in [
        format!("What belongs to {topic}?"),
        format!("List the points under {topic}."),
        format!("What does {topic} cover?"),
        format!("Which points are named under {topic}?"),
    ] {
        pool.ask(Way::Question, &question, &all);
    }
    pool.ask(
        Way::Question,
        &format!("How many points does {topic} have?"),
        &items.len().to_string(),
    );
    for (index, item) in inside.iter().enumerate() {
        pool.state(format!("Under {topic}: {item}."));
        pool.ask(Way::Reverse, &format!("Under which heading does this stand: {item}?"), lead);
        let mut others = inside.clone();
        others.remove(index);
        let asked = format!("{topic} names these: {}. What else?", others.join("; "));
        pool.ask(Way::Gap, &asked, &items[index]);
    }
}
