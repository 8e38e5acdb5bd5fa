//! Numbered steps, and bullet lists with what introduces them.

use super::{Content, Fact, Scope, clean_value};
use crate::english;
use crate::markdown::Span;

const LONGEST_LIST: usize = 12;
/// Longer steps are cut after their first sentence.
const LONGEST_STEP: usize = 25;

pub(super) fn extract(scope: &Scope, lead: Option<&str>, items: &[Span], facts: &mut Vec<Fact>) {
    let steps: Vec<String> = items.iter().filter_map(|item| step(&item.text())).collect();
    let Some(procedure) = name(scope, lead) else { return };
    if steps.len() != items.len() || steps.len() < 2 || steps.len() > 3 * LONGEST_LIST {
        return;
    }
    for (index, item) in items.iter().enumerate() {
        let content =
            Content::Step { procedure: procedure.clone(), number: index + 1, steps: steps.clone() };
        facts.push(Fact { scope: scope.clone(), evidence: item.source.clone(), content });
    }
    let sources: Vec<&str> = items.iter().map(|item| item.source.as_str()).collect();
    let content = Content::Procedure { procedure, steps };
    facts.push(Fact { scope: scope.clone(), evidence: sources.join("\n"), content });
}

pub(super) fn items(scope: &Scope, lead: Option<&str>, items: &[Span], facts: &mut Vec<Fact>) {
    let texts: Vec<String> = items.iter().filter_map(|item| step(&item.text())).collect();
    if texts.len() < 2 || texts.len() > LONGEST_LIST {
        return;
    }
    let Some(lead) = name(scope, lead) else { return };
    let sources: Vec<&str> = items.iter().map(|item| item.source.as_str()).collect();
    let content = Content::Items { lead, items: texts };
    facts.push(Fact { scope: scope.clone(), evidence: sources.join("\n"), content });
}

/// A step without its closing mark; a long one is its first sentence.
fn step(text: &str) -> Option<String> {
    let first = english::sentences(text).into_iter().next()?;
    clean_value(if english::word_count(text) > LONGEST_STEP { &first } else { text })
}

/// What the list is about: `To reset the washer:` names it, else the heading does.
fn name(scope: &Scope, lead: Option<&str>) -> Option<String> {
    let last = lead.and_then(|lead| english::sentences(lead).pop());
    let introduces = last.filter(|last| last.ends_with(':') && english::word_count(last) <= 16);
    let usable = introduces.as_deref().map(|last| last.trim_end_matches(':').trim().to_owned());
    let vague = ["proceed as follows", "as follows", "the following", "these steps", "following"];
    usable
        .filter(|text| !vague.iter().any(|phrase| text.to_lowercase().contains(phrase)))
        .or_else(|| scope.section.clone())
        .or_else(|| Some(scope.title.clone()).filter(|title| !title.is_empty()))
}
