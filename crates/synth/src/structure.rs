//! The recipe without a teacher: facts of the structure, each in many forms.

use std::collections::{HashMap, HashSet};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::english::{self, Lexicon};
use crate::example::{Example, Origin, Verdict, short_hash};
use crate::facts::{Content, Fact, Passage, extract};
use crate::restate::{Subjects, restate};

/// How many forms are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Of a fact that no other restates.
    pub(crate) forms: usize,
    pub(crate) per_chunk: usize,
    pub(crate) seed: u64,
}

/// Fewer forms of a fact teach nothing that can be asked for, so a chunk with too many facts
/// keeps at least so many of each.
const FEWEST_FORMS: usize = 6;

/// Which values stand under one name in the whole collection; a name with several is ambiguous.
#[derive(Default)]
pub(crate) struct Names {
    values: HashMap<String, HashSet<String>>,
    lexicon: Lexicon,
}

impl Names {
    /// Two rounds: names can be told from common nouns only when all texts are known.
    pub(crate) fn of<'a>(passages: impl Iterator<Item = Passage<'a>> + Clone) -> Self {
        let mut names = Names::default();
        for passage in passages.clone() {
            names.lexicon.add(passage.text);
        }
        for passage in passages {
            names.add(&passage);
        }
        names
    }

    fn add(&mut self, passage: &Passage) {
        for fact in extract(passage, &self.lexicon) {
            if let Some((name, value)) = name_and_value(&fact) {
                self.values.entry(name).or_default().insert(value);
            }
        }
    }

    fn subjects(&self, fact: &Fact) -> Subjects {
        let several = name_and_value(fact)
            .and_then(|(name, _)| self.values.get(&name))
            .is_some_and(|values| values.len() > 1);
        if several { Subjects::Ambiguous } else { Subjects::Distinct }
    }
}

/// What a fact's question names, and what its answer says.
fn name_and_value(fact: &Fact) -> Option<(String, String)> {
    let plain = |text: &str| english::words(text).join(" ");
    Some(match &fact.content {
        Content::Attribute(a) | Content::Property(a) => {
            let qualifier = a.subject.qualifier.as_deref().unwrap_or("");
            (
                format!("{}|{}|{}", plain(&a.subject.key), plain(qualifier), plain(&a.attribute)),
                plain(&a.value),
            )
        }
        Content::Record { subject, fields, .. } => {
            let qualifier = subject.qualifier.as_deref().unwrap_or("");
            (format!("{}|{}", plain(&subject.key), plain(qualifier)), format!("{fields:?}"))
        }
        Content::Listing { noun, attribute, value, keys } => {
            (format!("all {}|{}|{}", plain(noun), plain(attribute), plain(value)), keys.join("|"))
        }
        Content::Definition { term, text } => (plain(term), plain(text)),
        Content::Step { procedure, number, steps } => {
            (format!("{}|{number}", plain(procedure)), plain(&steps[number - 1]))
        }
        Content::Procedure { procedure, steps } => (plain(procedure), steps.join("|")),
        Content::Items { lead, items } => (plain(lead), items.join("|")),
        Content::Sentence { .. } => return None,
    })
}

/// All examples of a passage, fact by fact.
pub(crate) fn forms(passage: &Passage, names: &Names, limits: &Limits) -> Vec<Example> {
    let facts = distinct(extract(passage, &names.lexicon));
    let room = limits.per_chunk / facts.len().max(1);
    let forms = limits.forms.min(room.max(FEWEST_FORMS.min(limits.forms)));
    let recorded: HashSet<&str> = facts.iter().filter_map(|fact| recorded(&fact.content)).collect();
    let mut examples = Vec::new();
    for fact in &facts {
        let id = short_hash(&[passage.chunk, &format!("{:?}", fact.content)]);
        let seed = blake3::hash(format!("{}/{id}", limits.seed).as_bytes());
        let mut rng = ChaCha8Rng::from_seed(*seed.as_bytes());
        let recipe = format!("structure/{}", label(&fact.content));
        let origin = Origin {
            document: passage.document,
            chunk: passage.chunk,
            recipe: &recipe,
            teacher: "structure",
            fact: &id,
        };
        // A row's forms name all its attributes, a procedure's all its steps; a sentence seldom
        // tells what can be asked for, least of all one without a number or a name.
        let forms = match &fact.content {
            Content::Attribute(a) if recorded.contains(a.subject.key.as_str()) => forms.div_ceil(2),
            Content::Step { .. } => forms.div_ceil(2),
            Content::Sentence { text } if english::is_specific(text) => forms.div_ceil(4),
            Content::Sentence { .. } => forms.div_ceil(16),
            _ => forms,
        };
        for body in restate(fact, names.subjects(fact), forms, &mut rng) {
            let evidence = Some(fact.evidence.clone());
            examples.push(Example::new(origin, body, evidence, Verdict::Accepted));
        }
    }
    examples.truncate(limits.per_chunk);
    examples
}

/// The subject of a fact that states a whole table row.
fn recorded(content: &Content) -> Option<&str> {
    match content {
        Content::Record { subject, .. } => Some(&subject.key),
        _ => None,
    }
}

fn distinct(facts: Vec<Fact>) -> Vec<Fact> {
    let mut kept: Vec<Fact> = Vec::new();
    for fact in facts {
        if !kept.iter().any(|other| other.content == fact.content) {
            kept.push(fact);
        }
    }
    kept
}

fn label(content: &Content) -> &'static str {
    match content {
        Content::Attribute(_) => "attribute",
        Content::Property(_) => "property",
        Content::Record { .. } => "row",
        Content::Listing { .. } => "listing",
        Content::Definition { .. } => "definition",
        Content::Step { .. } | Content::Procedure { .. } => "procedure",
        Content::Items { .. } => "list",
        Content::Sentence { .. } => "prose",
    }
}

#[cfg(test)]
mod tests;
