//! Many forms of one fact: statements, questions in both directions, gaps.

mod attribute;
pub(crate) mod header;
mod listed;
mod sentence;
mod wording;

use std::collections::HashSet;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::english;
use crate::example::Body;
use crate::facts::{Content, Fact, Scope};

/// Whether the subject alone tells which fact is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subjects {
    Distinct,
    /// Other sections say other things under the same name: every form names its section.
    Ambiguous,
}

/// The way a form states its fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    Statement,
    Question,
    Reverse,
    Gap,
}

/// Forms before they are chosen and set in their scope.
#[derive(Default)]
struct Pool {
    forms: Vec<(Way, Draft)>,
}

#[derive(Clone)]
enum Draft {
    Statement(String),
    Exchange(String, String),
}

/// In which order ways are drawn from, so that both directions are there however few forms are
/// wanted.
const ROUND: [Way; 8] = [
    Way::Question,
    Way::Reverse,
    Way::Statement,
    Way::Question,
    Way::Statement,
    Way::Question,
    Way::Reverse,
    Way::Gap,
];

/// At most `forms` different forms of a fact.
pub(crate) fn restate(
    fact: &Fact,
    subjects: Subjects,
    forms: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<Body> {
    let mut pool = Pool::default();
    match &fact.content {
        Content::Attribute(attribute) => attribute::attribute(attribute, &mut pool, rng),
        Content::Property(attribute) => attribute::property(attribute, &mut pool, rng),
        Content::Record { subject, fields, unique_pairs } => {
            attribute::record(subject, fields, unique_pairs, &mut pool, rng);
        }
        Content::Listing { noun, attribute, value, keys } => {
            listed::listing(noun, attribute, value, keys, &mut pool);
        }
        Content::Definition { term, text } => listed::definition(term, text, &mut pool),
        Content::Step { procedure, number, steps } => {
            listed::step(procedure, *number, steps, &mut pool);
        }
        Content::Procedure { procedure, steps } => listed::procedure(procedure, steps, &mut pool),
        Content::Items { lead, items } => listed::items(lead, items, &mut pool),
        Content::Sentence { text } => sentence::sentence(&fact.scope, text, &mut pool),
    }
    let share = match (&fact.content, subjects) {
        (_, Subjects::Ambiguous) => 1.0,
        (Content::Sentence { .. } | Content::Property(_) | Content::Items { .. }, _) => 0.7,
        _ => 0.3,
    };
    choose(pool, forms, rng)
        .into_iter()
        .map(|draft| set_in_scope(draft, &fact.scope, share, rng))
        .collect()
}

impl Pool {
    fn state(&mut self, text: impl Into<String>) {
        self.forms.push((Way::Statement, Draft::Statement(finish(&text.into(), '.'))));
    }

    fn ask(&mut self, way: Way, question: &str, answer: &str) {
        let end = if is_question(question) { '?' } else { '.' };
        let draft = Draft::Exchange(finish(question, end), answer.trim().to_owned());
        self.forms.push((way, draft));
    }
}

/// Draws from the ways in turn; within a way in random order.
fn choose(pool: Pool, forms: usize, rng: &mut ChaCha8Rng) -> Vec<Draft> {
    let mut candidates = pool.forms;
    candidates.shuffle(rng);
    let mut seen = HashSet::new();
    let mut chosen = Vec::new();
    let mut turn = 0;
    while chosen.len() < forms && !candidates.is_empty() {
        let way = ROUND[turn % ROUND.len()];
        turn += 1;
        let Some(index) = candidates.iter().position(|(candidate, _)| *candidate == way) else {
            continue;
        };
        let (_, draft) = candidates.remove(index);
        if seen.insert(draft.key()) {
            chosen.push(draft);
        }
    }
    chosen
}

impl Draft {
    fn key(&self) -> String {
        match self {
            Draft::Statement(text) => text.to_lowercase(),
            Draft::Exchange(question, answer) => format!("{question}\n{answer}").to_lowercase(),
        }
    }
}

const QUESTION_SCOPES: &[&str] = &[
    "{place}: {text}",
    "{text} ({place})",
    "Regarding “{place}”: {text}",
    "A question on “{place}”. {text}",
    "According to “{place}”: {text}",
];

const STATEMENT_SCOPES: &[&str] = &[
    "{place}: {text}",
    "{text} ({place})",
    "From “{place}”: {text}",
    "“{place}” says: {text}",
    "According to “{place}”: {text}",
    "A fact on “{place}”: {text}",
];

/// Names the section or document in a share of the forms.
fn set_in_scope(draft: Draft, scope: &Scope, share: f64, rng: &mut ChaCha8Rng) -> Body {
    let named = rng.random_bool(share);
    let place = match (&scope.section, rng.random_range(0..3)) {
        (Some(section), 0) => format!("{}, {section}", scope.title),
        (Some(section), 1) => section.clone(),
        (Some(section), _) if share >= 1.0 => section.clone(),
        _ => scope.title.clone(),
    };
    let place = place.trim_start_matches(", ").to_owned();
    let scopes =
        if matches!(draft, Draft::Statement(_)) { STATEMENT_SCOPES } else { QUESTION_SCOPES };
    let template = scopes.choose(rng).expect("templates are constant");
    // A place that is itself the answer would give it away.
    let gives_away = match &draft {
        Draft::Statement(_) => false,
        Draft::Exchange(_, answer) => {
            let answer = answer.trim_end_matches('.').to_lowercase();
            place.to_lowercase().contains(&answer)
        }
    };
    let wrap = |text: String| {
        let lower = text.to_lowercase();
        let said = |name: &str| !name.is_empty() && lower.contains(&name.to_lowercase());
        let named_already = said(&place) || scope.section.as_deref().is_some_and(said);
        let new = !place.is_empty() && !named_already && !gives_away;
        if named && new { fill(template, &[("place", &place), ("text", &text)]) } else { text }
    };
    match draft {
        Draft::Statement(text) => Body::Text(wrap(text)),
        Draft::Exchange(question, answer) => {
            // Short answers come with and without a capital.
            let small = !answer.ends_with('.') && rng.random_bool(0.5);
            let answer = if small { answer } else { english::capitalise(&answer) };
            Body::exchange(&wrap(question), &answer)
        }
    }
}

/// Puts values into a template, in one pass, so that braces in a value stay as they are.
///
/// # Panics
/// If the template names a value that is not given: templates are constant, and a test fills
/// them all.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len() + 64);
    let mut rest = template;
    while let Some((before, tail)) = rest.split_once('{') {
        let (name, after) = tail.split_once('}').expect("braces of templates are closed");
        let value = values.iter().find(|(key, _)| *key == name);
        filled.push_str(before);
        filled.push_str(value.unwrap_or_else(|| panic!("{template:?} names {name:?}")).1);
        rest = after;
    }
    filled.push_str(rest);
    filled
}

/// A capital at the beginning, one mark at the end.
fn finish(text: &str, end: char) -> String {
    let text = text.trim();
    let bare = text.trim_end_matches(['.', ' ', ';', ',']);
    let closed = text.ends_with(['?', '!', '”']) || text.ends_with("____.");
    let text = if closed { text.to_owned() } else { format!("{bare}{end}") };
    english::capitalise(&text)
}

fn is_question(text: &str) -> bool {
    text.trim_end().ends_with('?')
}

/// `a, b and c`.
fn enumerate(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}
