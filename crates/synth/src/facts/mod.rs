//! Facts that a chunk's structure states.

mod definition;
mod procedure;
mod prose;
mod table;

use crate::english::{self, Lexicon};
use crate::markdown::{Block, Span, blocks};

/// A chunk with what its examples must name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage<'a> {
    pub(crate) document: &'a str,
    pub(crate) chunk: &'a str,
    pub(crate) title: &'a str,
    pub(crate) section: &'a [String],
    pub(crate) text: &'a str,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fact {
    pub(crate) scope: Scope,
    /// The row, item or sentence as it stands in the chunk.
    pub(crate) evidence: String,
    pub(crate) content: Content,
}

/// Where a fact stands; named in examples whose subject alone would be ambiguous.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scope {
    pub(crate) title: String,
    /// The nearest heading that says more than `Overview`.
    pub(crate) section: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    Attribute(Attribute),
    /// An attribute of what the section is about, which is its subject's key.
    Property(Attribute),
    /// All that a table row says of its subject.
    Record {
        subject: Subject,
        fields: Vec<(String, String)>,
        /// Pairs of fields that no other row has.
        unique_pairs: Vec<(usize, usize)>,
    },
    /// Several subjects that share a value.
    Listing {
        noun: String,
        attribute: String,
        value: String,
        keys: Vec<String>,
    },
    Definition {
        term: String,
        text: String,
    },
    Step {
        procedure: String,
        number: usize,
        steps: Vec<String>,
    },
    Procedure {
        procedure: String,
        steps: Vec<String>,
    },
    /// A bullet list and what introduces it.
    Items {
        lead: String,
        items: Vec<String>,
    },
    Sentence {
        text: String,
    },
}

/// `subject` has `value` as its `attribute`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attribute {
    pub(crate) subject: Subject,
    pub(crate) attribute: String,
    pub(crate) value: String,
    /// Whether the value belongs to this subject alone, so that it can be asked for in reverse.
    pub(crate) identifies: bool,
    /// Whether no other attribute of the subject is of the same kind, so that synonyms are safe.
    pub(crate) only_of_kind: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Subject {
    /// What the key is: `fault code`, `machine`. Empty where the source does not say.
    pub(crate) noun: String,
    pub(crate) key: String,
    /// What tells equal keys apart: `machine W2`.
    pub(crate) qualifier: Option<String>,
}

/// Longer values are passages, not facts.
const LONGEST_VALUE: usize = 40;
const LONGEST_KEY: usize = 12;

/// All facts of a passage, in its order.
pub(crate) fn extract(passage: &Passage, lexicon: &Lexicon) -> Vec<Fact> {
    let mut reader = Reader::new(passage);
    for block in blocks(passage.text) {
        reader.take(&block);
    }
    for fact in &mut reader.facts {
        settle(&mut fact.content, lexicon);
    }
    reader.facts
}

/// Puts keys and values into the case that they have inside a sentence.
fn settle(content: &mut Content, lexicon: &Lexicon) {
    let inside = |text: &mut String| *text = lexicon.inside(text);
    match content {
        Content::Attribute(fact) => {
            inside(&mut fact.subject.key);
            inside(&mut fact.value);
        }
        // The subject is a heading, which keeps its capital.
        Content::Property(fact) => inside(&mut fact.value),
        Content::Record { subject, fields, .. } => {
            inside(&mut subject.key);
            fields.iter_mut().for_each(|(_, value)| inside(value));
        }
        Content::Listing { value, keys, .. } => {
            inside(value);
            keys.iter_mut().for_each(inside);
        }
        Content::Definition { term, text } => {
            inside(term);
            inside(text);
        }
        Content::Step { steps, .. } | Content::Procedure { steps, .. } => {
            steps.iter_mut().for_each(inside);
        }
        Content::Items { items, .. } => items.iter_mut().for_each(inside),
        Content::Sentence { .. } => {}
    }
}

struct Reader<'a> {
    passage: &'a Passage<'a>,
    scope: Scope,
    /// The paragraph just above a list, which introduces it.
    lead: Option<String>,
    facts: Vec<Fact>,
}

impl<'a> Reader<'a> {
    fn new(passage: &'a Passage<'a>) -> Self {
        let telling = passage.section.iter().rev().find(|s| is_telling(s, passage.title));
        let section = telling.map(|heading| clean_title(heading));
        let scope = Scope { title: clean_title(passage.title), section };
        Reader { passage, scope, lead: None, facts: Vec::new() }
    }

    fn take(&mut self, block: &Block) {
        let lead = self.lead.take();
        match block {
            Block::Heading(text) => {
                if is_telling(text, self.passage.title) {
                    self.scope.section = Some(clean_title(text));
                }
            }
            Block::Paragraph(span) => {
                self.paragraph(span);
                self.lead = Some(span.text());
            }
            Block::List { ordered: true, items } if items.len() > 1 => {
                procedure::extract(&self.scope, lead.as_deref(), items, &mut self.facts);
                let telling = |item: &&Span| {
                    let text = item.text();
                    text.chars().any(|c| c.is_ascii_digit()) || english::word_count(&text) >= 9
                };
                self.sentences_of(&items.iter().filter(telling).cloned().collect::<Vec<_>>());
            }
            // A numbered heading in plain text looks like a list of one item.
            Block::List { ordered: true, items } if is_heading(&items[0].text()) => {
                self.scope.section = Some(clean_title(&items[0].text()));
            }
            Block::List { items, .. } => self.bullets(lead.as_deref(), items),
            Block::Table { header, rows } => {
                table::extract(&self.scope, header, rows, &mut self.facts);
            }
            Block::Definition { term, text } => {
                definition::push(&self.scope, term, &text.text(), &text.source, &mut self.facts);
            }
        }
    }

    fn paragraph(&mut self, span: &Span) {
        if definition::label_lines(&self.scope, span, &mut self.facts) {
            return;
        }
        if definition::glossary(&self.scope, &span.text(), &mut self.facts) {
            return;
        }
        if let Some((term, text)) = definition::split(span) {
            definition::push(&self.scope, &term, &text, &span.source, &mut self.facts);
            return;
        }
        prose::extract(&self.scope, &span.text(), &mut self.facts);
    }

    fn bullets(&mut self, lead: Option<&str>, items: &[Span]) {
        let mut plain = Vec::new();
        for item in items {
            match definition::split(item) {
                Some((term, text)) => {
                    definition::push(&self.scope, &term, &text, &item.source, &mut self.facts);
                }
                None => plain.push(item.clone()),
            }
        }
        if plain.len() == items.len() && items.len() > 1 {
            procedure::items(&self.scope, lead, items, &mut self.facts);
        }
        self.sentences_of(&plain);
    }

    /// Items that are whole sentences are facts of their own.
    fn sentences_of(&mut self, items: &[Span]) {
        for item in items {
            let text = item.text();
            if english::word_count(&text) >= 5 {
                prose::extract(&self.scope, &text, &mut self.facts);
            }
        }
    }
}

fn is_heading(text: &str) -> bool {
    english::word_count(text) <= 6 && !text.ends_with(['.', ';', ':', ','])
}

/// Whether a heading names a subject of its own.
fn is_telling(heading: &str, title: &str) -> bool {
    const GENERAL: &[&str] = &[
        "overview",
        "introduction",
        "general",
        "notes",
        "note",
        "scope",
        "purpose",
        "table",
        "summary",
        "contents",
        "details",
        "background",
        "references",
        "appendix",
        "remarks",
        "description",
        "examples",
        "example",
        "conditions",
        "rules",
        "limits",
        "quantities",
        "see also",
        "about",
        "miscellaneous",
        "faq",
    ];
    let clean = clean_title(heading);
    let lower = clean.to_lowercase();
    !clean.is_empty()
        && !GENERAL.contains(&lower.as_str())
        && lower != clean_title(title).to_lowercase()
}

/// A heading without its number and closing punctuation: `3.2 Faults:` → `Faults`.
pub(crate) fn clean_title(heading: &str) -> String {
    let text = heading.trim().trim_end_matches([':', '.']).trim();
    // File names and shouted headings.
    if !text.contains(' ') && text.contains(['-', '_']) && !english::is_code(text) {
        return text.replace(['-', '_'], " ");
    }
    if text.contains(' ')
        && !text.chars().any(char::is_lowercase)
        && !text.contains(char::is_numeric)
    {
        return english::capitalise(&text.to_lowercase());
    }
    let numbered = text.split_once(char::is_whitespace).filter(|(first, _)| {
        first.starts_with(|c: char| c.is_ascii_digit())
            && first.chars().all(|c| c.is_ascii_digit() || ".)".contains(c))
    });
    match numbered {
        // "24 hour rule" is a name; "2. Rules" and "2.1 Rules" are numbered.
        Some((first, rest))
            if first.contains(['.', ')']) || rest.starts_with(char::is_uppercase) =>
        {
            rest.trim().to_owned()
        }
        _ => text.to_owned(),
    }
}

/// A cell, term or label as a value: no closing full stop, no placeholder dashes.
fn clean_value(text: &str) -> Option<String> {
    let text = text.trim().trim_end_matches(['.', ';', ',']).trim();
    let empty = ["", "-", "–", "—", "n/a", "N/A", "none", "None", "/", "x", "tbd", "TBD", "?", "…"];
    let short = english::word_count(text) <= LONGEST_VALUE;
    (!empty.contains(&text) && short).then(|| text.to_owned())
}

fn clean_key(text: &str) -> Option<String> {
    let text = text.trim().trim_end_matches([':', '.', ';', ',']).trim();
    let usable = text.chars().any(char::is_alphanumeric);
    (usable && english::word_count(text) <= LONGEST_KEY).then(|| text.to_owned())
}
