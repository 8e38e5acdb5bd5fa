//! The held-out part. It is chosen before anything is synthesised, by whole documents, or by
//! chapters where one document is most of the collection.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use store::Hash;

use crate::Error;
use crate::read::Document;

/// What to keep out of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HeldOut {
    /// A share of the words, chosen by the seed.
    Fraction(f64),
    /// Paths or globs (`*`, `?`, `**`), relative to the workspace or to a folder of the collection.
    Documents(Vec<String>),
}

impl Default for HeldOut {
    fn default() -> Self {
        HeldOut::Fraction(0.1)
    }
}

/// A document that could be held out.
pub(crate) struct Candidate<'a> {
    /// Relative to the workspace, and to the folder in which it was found.
    pub(crate) names: [&'a str; 2],
    pub(crate) document: &'a Document,
}

/// What of a document is held out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Nothing,
    All,
    /// The sections that begin with one of these paths.
    Chapters(Vec<Vec<String>>),
}

impl Part {
    pub(crate) fn holds(&self, section: &[String]) -> bool {
        match self {
            Part::Nothing => false,
            Part::All => true,
            Part::Chapters(chapters) => chapters.iter().any(|chapter| section.starts_with(chapter)),
        }
    }
}

/// Chooses the part of each candidate, in their order.
///
/// # Errors
/// [`Error::HeldOutPattern`] for a pattern without a document, [`Error::HeldOut`] if nothing would
/// be left for training, [`Error::Option`] for a fraction that is none.
pub(crate) fn choose(
    candidates: &[Candidate],
    held_out: &HeldOut,
    seed: u64,
) -> Result<Vec<Part>, Error> {
    let parts = match held_out {
        HeldOut::Documents(patterns) => by_pattern(candidates, patterns)?,
        HeldOut::Fraction(fraction) if (0.0..1.0).contains(fraction) => {
            by_fraction(candidates, *fraction, seed)
        }
        HeldOut::Fraction(fraction) => {
            let value = fraction.to_string();
            return Err(Error::Option { name: "held_out", value, limit: "0 to below 1" });
        }
    };
    if !parts.is_empty() && parts.iter().all(|part| *part == Part::All) {
        let reason = "it covers every document and leaves none for training".into();
        return Err(Error::HeldOut { reason });
    }
    Ok(parts)
}

fn by_pattern(candidates: &[Candidate], patterns: &[String]) -> Result<Vec<Part>, Error> {
    let mut parts = vec![Part::Nothing; candidates.len()];
    for pattern in patterns {
        let mut found = false;
        for (candidate, part) in candidates.iter().zip(&mut parts) {
            if candidate.names.iter().any(|name| matches(pattern, name)) {
                (*part, found) = (Part::All, true);
            }
        }
        if !found {
            return Err(Error::HeldOutPattern { pattern: pattern.clone() });
        }
    }
    Ok(parts)
}

/// Whether a path is the pattern's, or lies in the folder it names.
fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> =
        pattern.trim_start_matches("./").trim_end_matches('/').split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    (1..=path.len()).any(|end| matches_parts(&pattern, &path[..end]))
}

fn matches_parts(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.first(), path.first()) {
        (None, None) => true,
        (Some(&"**"), _) => {
            (0..=path.len()).any(|skip| matches_parts(&pattern[1..], &path[skip..]))
        }
        (Some(part), Some(name)) => {
            let (part, name): (Vec<char>, Vec<char>) =
                (part.chars().collect(), name.chars().collect());
            matches_name(&part, &name) && matches_parts(&pattern[1..], &path[1..])
        }
        _ => false,
    }
}

fn matches_name(pattern: &[char], name: &[char]) -> bool {
    match (pattern.first(), name.first()) {
        (None, None) => true,
        (Some('*'), _) => (0..=name.len()).any(|skip| matches_name(&pattern[1..], &name[skip..])),
        (Some('?'), Some(_)) => matches_name(&pattern[1..], &name[1..]),
        (Some(a), Some(b)) => a == b && matches_name(&pattern[1..], &name[1..]),
        _ => false,
    }
}

/// What is held out as a whole: a document, or a chapter of the dominating one.
struct Unit {
    candidate: usize,
    chapter: Option<Vec<String>>,
    words: usize,
}

/// How much more than the fraction may be held out: units have the sizes they have.
const TOLERANCE: f64 = 1.5;

fn by_fraction(candidates: &[Candidate], fraction: f64, seed: u64) -> Vec<Part> {
    let mut parts = vec![Part::Nothing; candidates.len()];
    let words: Vec<usize> = candidates.iter().map(|c| document_words(c.document)).collect();
    let total: usize = words.iter().sum();
    let mut units = Vec::new();
    for (candidate, &words) in words.iter().enumerate() {
        if words * 2 <= total {
            units.push(Unit { candidate, chapter: None, words });
            continue;
        }
        for (chapter, words) in
            chapters(candidates[candidate].document, fraction * total as f64 * TOLERANCE)
        {
            units.push(Unit { candidate, chapter: Some(chapter), words });
        }
    }
    if fraction == 0.0 || units.len() < 2 {
        return parts;
    }
    // The order depends on the seed and on each unit alone, so a new document moves no other.
    units.sort_by_cached_key(|unit| {
        let name = candidates[unit.candidate].names[0];
        let chapter = unit.chapter.as_ref().map(|chapter| chapter.join("\n")).unwrap_or_default();
        Hash::of(format!("{seed}\n{name}\n{chapter}").as_bytes())
    });
    let target = fraction * total as f64;
    let mut chosen: Vec<&Unit> = Vec::new();
    let mut held = 0;
    for unit in &units {
        if (held as f64) < target && (held + unit.words) as f64 <= target * TOLERANCE {
            held += unit.words;
            chosen.push(unit);
        }
    }
    if chosen.is_empty() {
        chosen.extend(units.iter().min_by_key(|unit| unit.words));
    }
    for unit in chosen {
        match (&unit.chapter, &mut parts[unit.candidate]) {
            (None, part) => *part = Part::All,
            (Some(chapter), Part::Chapters(chapters)) => chapters.push(chapter.clone()),
            (Some(chapter), part) => *part = Part::Chapters(vec![chapter.clone()]),
        }
    }
    parts
}

fn document_words(document: &Document) -> usize {
    document.blocks.iter().map(|block| crate::chunk::words(&block.text)).sum()
}

/// The words of each chapter: the sections of the first level that has more than one, or of a
/// deeper one where most of these (the parts of a manual, say) have more than `largest` words. Text
/// above them belongs to none. Empty for a document without sections.
fn chapters(document: &Document, largest: f64) -> Vec<(Vec<String>, usize)> {
    let deepest = document.blocks.iter().map(|b| b.section.len()).max().unwrap_or(0);
    let mut first = Vec::new();
    for depth in 1..=deepest {
        let mut chapters: BTreeMap<&[String], usize> = BTreeMap::new();
        for block in document.blocks.iter().filter(|b| b.section.len() >= depth) {
            *chapters.entry(&block.section[..depth]).or_default() +=
                crate::chunk::words(&block.text);
        }
        let small = chapters.values().filter(|words| **words as f64 <= largest).count();
        if chapters.len() > 1 && (first.is_empty() || 2 * small >= chapters.len()) {
            let fits = 2 * small >= chapters.len();
            first =
                chapters.into_iter().map(|(chapter, words)| (chapter.to_vec(), words)).collect();
            if fits {
                break;
            }
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::{Block, BlockKind};

    fn document(sections: &[(&str, usize)]) -> Document {
        let blocks = sections.iter().map(|(section, words)| Block {
            kind: BlockKind::Paragraph,
            section: section.split('/').map(str::to_owned).filter(|s| !s.is_empty()).collect(),
            page: None,
            text: "word ".repeat(*words),
        });
        Document { title: String::new(), blocks: blocks.collect() }
    }

    #[test]
    fn patterns_are_paths_folders_or_globs() {
        for (pattern, path, expected) in [
            ("a.md", "a.md", true),
            ("docs", "docs/a.md", true),
            ("docs/", "docs/x/a.md", true),
            ("doc", "docs/a.md", false),
            ("docs/*.md", "docs/a.md", true),
            ("docs/*.md", "docs/x/a.md", false),
            ("**/*.md", "docs/x/a.md", true),
            ("docs/?.pdf", "docs/a.md", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_fraction_is_held_out_by_document_and_follows_the_seed() {
        let documents: Vec<Document> = (0..40).map(|_| document(&[("", 100)])).collect();
        let names: Vec<String> = (0..40).map(|i| format!("{i}.md")).collect();
        let candidates: Vec<Candidate> = names
            .iter()
            .zip(&documents)
            .map(|(name, document)| Candidate { names: [name, name], document })
            .collect();
        let choose = |seed| choose(&candidates, &HeldOut::Fraction(0.1), seed).unwrap();
        let held = |parts: &[Part]| parts.iter().filter(|p| **p == Part::All).count();
        assert_eq!(held(&choose(1)), 4);
        assert_eq!(choose(1), choose(1));
        assert_ne!(choose(1), choose(2));
    }

    #[test]
    fn a_document_that_dominates_is_held_out_by_chapter() {
        let large =
            document(&[("", 5), ("A/x", 100), ("A/y", 100), ("B", 150), ("C", 60), ("D", 300)]);
        let small = document(&[("Z", 50)]);
        let candidates = [
            Candidate { names: ["large", "large"], document: &large },
            Candidate { names: ["small", "small"], document: &small },
        ];
        let parts = choose(&candidates, &HeldOut::Fraction(0.2), 3).unwrap();
        let Part::Chapters(chapters) = &parts[0] else { panic!("{parts:?}") };
        assert!(!chapters.is_empty() && chapters.iter().all(|c| c.len() == 1), "{chapters:?}");
        assert!(!parts[0].holds(&[]));
    }

    #[test]
    fn chapters_are_held_out_where_parts_are_too_large() {
        let sections: Vec<String> =
            (0..20).map(|i| format!("Part {}/Chapter {i}", i % 2)).collect();
        let sections: Vec<(&str, usize)> = sections.iter().map(|s| (s.as_str(), 50)).collect();
        let manual = document(&sections);
        let chapters = chapters(&manual, 150.0);
        assert_eq!((chapters.len(), chapters[0].0.len(), chapters[0].1), (20, 2, 50));
    }

    #[test]
    fn errors() {
        let only = document(&[("A", 5)]);
        let candidates = [Candidate { names: ["m/a.md", "a.md"], document: &only }];
        let error = |held_out| choose(&candidates, &held_out, 0).unwrap_err().to_string();
        insta::assert_snapshot!(error(HeldOut::Fraction(1.5)), @"held_out = 1.5 is outside 0 to below 1");
        insta::assert_snapshot!(error(HeldOut::Documents(vec!["b*".into()])), @r#"held-out pattern "b*" matches no document; it is a path or glob below a folder of the collection"#);
        insta::assert_snapshot!(error(HeldOut::Documents(vec!["a.md".into()])), @"held-out part: it covers every document and leaves none for training");
    }
}
