//! Forms of `subject – attribute – value`, and of whole rows.

use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::header::{self, Grammar};
use super::wording::{self, ANY, KINDS, PASSIVES, Passive, Wording};
use super::{Pool, Way, enumerate, fill};
use crate::english;
use crate::facts::{Attribute, Subject};

/// Values of more words do not stand as a noun inside a sentence.
const LONGEST_NOUN: usize = 7;

/// The values of a template's places.
type Places = Vec<(&'static str, String)>;

/// An attribute of what a section is about: most forms leave the section to the scope.
pub(super) fn property(fact: &Attribute, pool: &mut Pool, rng: &mut ChaCha8Rng) {
    let known = KINDS.iter().find(|wording| wording.kind == header::kind(&fact.attribute));
    let asked: &'static [&'static str] = known.map_or(&[], |wording| wording.properties);
    let (statements, questions) = (wording::PROPERTY_STATEMENTS, wording::PROPERTY_QUESTIONS);
    apply(fact, None, Templates { statements, questions, reverse: &[] }, pool, rng);
    apply(fact, None, Templates { questions: asked, ..Templates::default() }, pool, rng);
    if fact.identifies {
        for template in wording::PROPERTY_REVERSE {
            let asked = fill_places(template, &places(fact, None, rng));
            pool.ask(Way::Reverse, &asked, &fact.attribute);
        }
    }
    let places = places(fact, None, rng);
    pool.ask(
        Way::Gap,
        &fill_places("Fill in the gap: {Attr} – ____ ({plain}).", &places),
        &fact.value,
    );
    if english::word_count(&fact.subject.key) <= 5 {
        pool.ask(
            Way::Question,
            &fill_places("For {key}, what is the {attr}?", &places),
            &fact.value,
        );
        pool.ask(Way::Question, &fill_places("{Key}: {attr}?", &places), &fact.value);
        pool.state(fill_places("For {key}, the {attr}: {value}.", &places));
        pool.state(fill_places("{Key} – {attr}: {value}.", &places));
    }
}

pub(super) fn attribute(fact: &Attribute, pool: &mut Pool, rng: &mut ChaCha8Rng) {
    match header::grammar(&fact.attribute) {
        Grammar::Noun => {
            let kind = header::kind(&fact.attribute);
            let own = KINDS.iter().find(|wording| wording.kind == kind);
            for wording in own.into_iter().chain([&ANY]) {
                let Wording { statements, questions, reverse, .. } = *wording;
                apply(fact, own, Templates { statements, questions, reverse }, pool, rng);
            }
        }
        Grammar::Passive { preposition, .. } => {
            let lasting =
                preposition == "for" && fact.value.starts_with(|c: char| c.is_ascii_digit());
            let looked_up = if lasting { "for how long" } else { preposition.as_str() };
            let passive = PASSIVES.iter().find(|p| p.prepositions.contains(&looked_up));
            if let Some(p) = passive {
                let Passive { statements, questions, reverse, .. } = *p;
                apply(fact, None, Templates { statements, questions, reverse }, pool, rng);
            }
            let reverse = wording::PASSIVE_REVERSE;
            apply(fact, None, Templates { reverse, ..Templates::default() }, pool, rng);
            active(fact, pool, rng);
        }
        Grammar::Verb(_) => {
            let (statements, questions, reverse) =
                (wording::VERB_STATEMENTS, wording::VERB_QUESTIONS, wording::VERB_REVERSE);
            apply(fact, None, Templates { statements, questions, reverse }, pool, rng);
        }
        Grammar::Modal { .. } => {
            let (statements, questions, reverse) =
                (wording::MODAL_STATEMENTS, wording::MODAL_QUESTIONS, wording::MODAL_REVERSE);
            apply(fact, None, Templates { statements, questions, reverse }, pool, rng);
        }
        Grammar::Participle { .. } => {
            let (statements, questions, reverse) =
                (wording::PART_STATEMENTS, wording::PART_QUESTIONS, wording::PART_REVERSE);
            apply(fact, None, Templates { statements, questions, reverse }, pool, rng);
        }
        Grammar::Label => {
            let (statements, questions, reverse) =
                (wording::LABEL_STATEMENTS, wording::LABEL_QUESTIONS, wording::LABEL_REVERSE);
            apply(fact, None, Templates { statements, questions, reverse }, pool, rng);
            how_many(fact, pool, rng);
        }
        Grammar::Question => {
            let (statements, questions, reverse) =
                (wording::WH_STATEMENTS, wording::WH_QUESTIONS, wording::WH_REVERSE);
            apply(fact, None, Templates { statements, questions, reverse }, pool, rng);
        }
    }
    gaps(fact, pool, rng);
}

/// Templates of one grammar or kind.
#[derive(Clone, Copy, Default)]
struct Templates {
    statements: &'static [&'static str],
    questions: &'static [&'static str],
    reverse: &'static [&'static str],
}

fn apply(
    fact: &Attribute,
    own: Option<&Wording>,
    templates: Templates,
    pool: &mut Pool,
    rng: &mut ChaCha8Rng,
) {
    let Templates { statements, questions, reverse } = templates;
    let usable: Vec<&str> = statements.iter().filter_map(|t| admit(t, fact)).collect();
    for template in &usable {
        pool.state(fill_places(template, &places(fact, own, rng)));
    }
    for (index, question) in questions.iter().filter_map(|t| admit(t, fact)).enumerate() {
        let asked = fill_places(question, &places(fact, own, rng));
        let whole = usable.choose(rng).filter(|_| index % 3 == 2);
        let answer = match whole {
            Some(template) => super::finish(&fill_places(template, &places(fact, own, rng)), '.'),
            None => fact.value.clone(),
        };
        pool.ask(Way::Question, &asked, &answer);
    }
    if !fact.identifies {
        return;
    }
    for template in reverse.iter().filter_map(|t| admit(t, fact)) {
        let places = places(fact, own, rng);
        let asked = fill_places(template, &places);
        pool.ask(Way::Reverse, &asked, &full_key(&fact.subject));
    }
}

/// The template without its mark, if it suits the fact.
fn admit<'a>(template: &'a str, fact: &Attribute) -> Option<&'a str> {
    let short =
        english::word_count(&fact.value) <= LONGEST_NOUN && !fact.value.contains([';', ':']);
    let first = |text: &str| text.split_whitespace().next().unwrap_or("").to_lowercase();
    let order = |text: &str| english::is_verb_base(&first(text)) && english::word_count(text) > 1;
    match template.as_bytes().first() {
        Some(b'~') => Some(&template[1..]),
        Some(b'!') => (order(&fact.value) && !fact.value.contains(". ")).then_some(&template[1..]),
        Some(b'^') => order(&fact.subject.key).then_some(&template[1..]),
        _ => (short && !order(&fact.value)).then_some(template),
    }
}

/// `Who approves QF-03?` beside `By whom is QF-03 approved?`.
fn active(fact: &Attribute, pool: &mut Pool, rng: &mut ChaCha8Rng) {
    let Grammar::Passive { participle, preposition } = header::grammar(&fact.attribute) else {
        return;
    };
    let mut words = participle.split_whitespace();
    let third = words.next().and_then(third_of_participle);
    let (Some(third), "by") = (third, preposition.as_str()) else { return };
    let rest: Vec<&str> = words.collect();
    let tail = if rest.is_empty() { String::new() } else { format!(" {}", rest.join(" ")) };
    let places = places(fact, None, rng);
    let get = |name: &str| fill_places(name, &places);
    let (key, who, noun) = (get("{key}"), get("{who}"), get("{noun}"));
    pool.state(format!("{who} {third}{tail} {key}."));
    for question in ["Who {third}{tail} {key}?", "Do you know who {third}{tail} {key}?"] {
        let asked = fill(question, &[("third", &third), ("tail", &tail), ("key", &key)]);
        pool.ask(Way::Question, &asked, &who);
        pool.ask(
            Way::Question,
            &asked,
            &format!("{} {third}{tail} {key}.", english::capitalise(&who)),
        );
    }
    if fact.identifies {
        let asked = format!("Which {noun} is it that {who} {third}{tail}?");
        pool.ask(Way::Reverse, &asked, &full_key(&fact.subject));
    }
}

/// Counts: `How many pieces does K-417 have?`.
fn how_many(fact: &Attribute, pool: &mut Pool, rng: &mut ChaCha8Rng) {
    if english::is_bare_number(&fact.value) && english::is_plural(&fact.attribute) {
        for template in
            ["How many {attr} {does} {key} have?", "How many {attr} are given for {key}?"]
        {
            pool.ask(Way::Question, &fill_places(template, &places(fact, None, rng)), &fact.value);
        }
        pool.state(fill_places("{Key} {has} {value} {attr}.", &places(fact, None, rng)));
    }
}

fn third_of_participle(participle: &str) -> Option<String> {
    let stem = participle.strip_suffix("ed")?;
    let base = [
        format!("{stem}e"),
        stem.to_owned(),
        format!("{}y", stem.strip_suffix('i').unwrap_or(stem)),
    ]
    .into_iter()
    .find(|base| english::is_verb_base(base))?;
    Some(third_of_base(&base))
}

fn third_of_base(base: &str) -> String {
    match base.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ if ["s", "sh", "ch", "x", "o"].iter().any(|end| base.ends_with(end)) => {
            format!("{base}es")
        }
        _ => format!("{base}s"),
    }
}

/// The subject as an answer: `QF-03`, or `clean the strainer (machine W2)`.
fn full_key(subject: &Subject) -> String {
    match &subject.qualifier {
        Some(qualifier) => format!("{} ({qualifier})", subject.key),
        None if english::is_bare_number(&subject.key) => {
            format!("{} {}", subject.noun, subject.key)
        }
        None => subject.key.clone(),
    }
}

/// The subject inside a sentence, with its noun or its article.
fn phrase(subject: &Subject, rng: &mut ChaCha8Rng) -> String {
    let key = &subject.key;
    let named = subject.noun.split_whitespace().any(|word| key.to_lowercase().contains(word));
    let code = english::is_code(key) || english::is_bare_number(key);
    let odds: &[bool] = if english::is_bare_number(key) { &[true] } else { &[true, false] };
    let with_noun = !subject.noun.is_empty() && !named && *odds.choose(rng).expect("not empty");
    let phrase = match (with_noun, code) {
        (true, true) => format!("{} {key}", subject.noun),
        (true, false) => format!("the {} “{key}”", subject.noun),
        (false, _) => english::with_article(key),
    };
    match &subject.qualifier {
        Some(qualifier) => format!("{phrase} ({qualifier})"),
        None => phrase,
    }
}

fn places(fact: &Attribute, own: Option<&Wording>, rng: &mut ChaCha8Rng) -> Places {
    let key = phrase(&fact.subject, rng);
    let plural = english::is_plural(&fact.subject.key) && !key.contains('“');
    let synonyms = own.filter(|_| fact.only_of_kind).map_or(&[][..], |wording| wording.synonyms);
    let mut names: Vec<&str> = synonyms.to_vec();
    names.push(&fact.attribute);
    let synonym = (*names.choose(rng).expect("not empty")).to_owned();
    let inside = fact.value.clone();
    let by = fact.attribute.ends_with(" by") && english::word_count(&inside) <= 5;
    let role = (by || english::is_person(&inside)) && inside.starts_with(char::is_lowercase);
    let starts_with_article =
        ["the ", "a ", "an ", "any ", "every ", "two ", "each ", "no ", "all "]
            .iter()
            .any(|a| inside.starts_with(a));
    let who = if role && !starts_with_article && !english::is_plural(&inside) {
        format!("the {inside}")
    } else {
        inside.clone()
    };
    let agree =
        |singular: &str, plural_form: &str| if plural { plural_form } else { singular }.to_owned();
    let mut places: Places = vec![
        ("Key", english::capitalise(&key)),
        ("key", key),
        ("plain", fact.subject.key.clone()),
        ("task", fact.subject.key.clone()),
        ("attr", fact.attribute.clone()),
        ("Attr", english::capitalise(&fact.attribute)),
        ("a", english::article(&fact.attribute).into()),
        ("syn", synonym),
        ("Value", english::capitalise(&fact.value)),
        ("value", inside),
        ("Who", english::capitalise(&who)),
        ("who", who),
        (
            "noun",
            if fact.subject.noun.is_empty() { "item".into() } else { fact.subject.noun.clone() },
        ),
        ("is", agree("is", "are")),
        ("does", agree("does", "do")),
        ("has", agree("has", "have")),
        ("says", agree("says", "say")),
        ("stands", agree("stands", "stand")),
        ("comes", agree("comes", "come")),
        ("costs", agree("costs", "cost")),
        ("serves", agree("serves", "serve")),
        ("calls", agree("calls", "call")),
    ];
    add_grammar(&fact.attribute, plural, &mut places);
    places
}

/// The places that only one grammar of header has.
fn add_grammar(attribute: &str, plural: bool, places: &mut Places) {
    match header::grammar(attribute) {
        Grammar::Passive { participle, preposition } => {
            places.push(("part", participle));
            places.push(("Prep", english::capitalise(&preposition)));
            places.push(("prep", preposition));
        }
        Grammar::Modal { modal, verb } => {
            places.push(("modal", modal));
            places.push(("verb", verb));
        }
        Grammar::Verb(base) => {
            places.push(("verb", base.into()));
            places.push(("thirds", attribute.to_owned()));
            places.push(("verbs", if plural { base.into() } else { attribute.to_owned() }));
        }
        Grammar::Participle { noun, participle } => {
            let plural = english::is_plural(&noun);
            places.push(("thing", noun));
            places.push(("part", participle));
            places.push(("are", if plural { "are" } else { "is" }.into()));
        }
        Grammar::Noun | Grammar::Question | Grammar::Label => {}
    }
}

fn fill_places(template: &str, places: &Places) -> String {
    let values: Vec<(&str, &str)> =
        places.iter().map(|(name, value)| (*name, value.as_str())).collect();
    fill(template, &values)
}

fn gaps(fact: &Attribute, pool: &mut Pool, rng: &mut ChaCha8Rng) {
    let places = places(fact, None, rng);
    let gap = match header::grammar(&fact.attribute) {
        Grammar::Passive { .. } => "{Key} {is} {part} {prep} ____.",
        Grammar::Verb(_) => "{Key} {verbs} ____.",
        Grammar::Modal { .. } => "{Key} {attr} ____.",
        Grammar::Noun => "The {attr} of {key} is ____.",
        Grammar::Question | Grammar::Participle { .. } | Grammar::Label => "{Key} – {attr}: ____.",
    };
    let asked = fill_places(gap, &places);
    pool.ask(Way::Gap, &format!("Fill in the gap: {asked}"), &fact.value);
    pool.ask(Way::Gap, &format!("Complete: {}", asked.replace("____.", "…")), &fact.value);
    if fact.identifies {
        let asked = fill_places("{Attr} – {value}: this belongs to ____.", &places);
        pool.ask(Way::Gap, &format!("Fill in the gap. {asked}"), &full_key(&fact.subject));
    }
}

/// How often a row is told whole, each time in another order.
const TELLINGS: usize = 4;

pub(super) fn record(
    subject: &Subject,
    fields: &[(String, String)],
    unique_pairs: &[(usize, usize)],
    pool: &mut Pool,
    rng: &mut ChaCha8Rng,
) {
    let noun = if subject.noun.is_empty() { "item" } else { subject.noun.as_str() };
    let said = |(name, value): &(String, String)| format!("{name}: {}", value.to_owned());
    let openings =
        ["All about {key}: ", "{Key} at a glance: ", "The entry for {key}: ", "{Key} – "];
    let questions = [
        "What do you know about {key}?",
        "Give me everything on {key}.",
        "Describe {key}.",
        "What is on record for {key}?",
    ];
    for turn in 0..TELLINGS {
        let mut order: Vec<&(String, String)> = fields.iter().collect();
        order.shuffle(rng);
        let told: Vec<String> = order.into_iter().map(said).collect();
        let key = phrase(subject, rng);
        let values = [("key", key.as_str()), ("Key", &english::capitalise(&key))];
        pool.state(format!("{}{}.", fill(openings[turn], &values), told.join("; ")));
        pool.ask(Way::Question, &fill(questions[turn], &values), &format!("{}.", told.join("; ")));
    }
    let mut pairs = unique_pairs.to_vec();
    pairs.shuffle(rng);
    for &(a, b) in pairs.iter().take(TELLINGS) {
        let ((name_a, value_a), (name_b, value_b)) = (&fields[a], &fields[b]);
        let (inside_a, inside_b) = (value_a.to_owned(), value_b.to_owned());
        let key = phrase(subject, rng);
        let (answer, both) =
            (full_key(subject), format!("{name_a}: {inside_a}; {name_b}: {inside_b}"));
        pool.ask(Way::Reverse, &format!("Which {noun} is it? {both}."), &answer);
        pool.ask(
            Way::Reverse,
            &format!(
                "I am thinking of {} {noun} with these marks: {both}. Which one is it?",
                english::article(noun)
            ),
            &answer,
        );
        let named = |name: &str| match header::grammar(name) {
            Grammar::Noun => format!("the {name}"),
            _ => format!("“{name}”"),
        };
        let asked = enumerate(&[named(name_a), named(name_b)]);
        pool.ask(Way::Question, &format!("Give {asked} of {key}."), &format!("{both}."));
    }
}
