//! Language and the figures of the Gopher and FineWeb filters. They are reported and never drop a
//! document: list, brace and short-line rules would drop the manuals and tables that matter here.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Figures of one document's text. Shares are of characters or words, 0 to 1.
///
/// Source: Gopher (arXiv:2112.11446, table A1), with the names that datatrove uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quality {
    pub mean_word_length: f32,
    /// `#` and `…` per word.
    pub symbol_ratio: f32,
    /// Lines that begin with a bullet.
    pub bullet_lines: f32,
    /// Lines that end with an ellipsis.
    pub ellipsis_lines: f32,
    /// Words with at least one letter.
    pub alphabetic_words: f32,
    /// How many different of the English stop words `the be to of and that have with` occur.
    pub stop_words: f32,
    /// Lines that stood before.
    pub duplicate_lines: f32,
    /// Paragraphs that stood before.
    pub duplicate_paragraphs: f32,
    /// Characters in the most frequent 2-gram.
    pub top_2_gram: f32,
    pub top_3_gram: f32,
    pub top_4_gram: f32,
}

impl Quality {
    /// The figures' names, in the order of [`Quality::figures`].
    pub const NAMES: [&str; 11] = [
        "mean_word_length",
        "symbol_ratio",
        "bullet_lines",
        "ellipsis_lines",
        "alphabetic_words",
        "stop_words",
        "duplicate_lines",
        "duplicate_paragraphs",
        "top_2_gram",
        "top_3_gram",
        "top_4_gram",
    ];

    /// What the filters would accept, in the same order.
    const ACCEPTED: [(f32, f32); 11] = [
        (3.0, 10.0),
        (0.0, 0.1),
        (0.0, 0.9),
        (0.0, 0.3),
        (0.8, 1.0),
        (2.0, f32::INFINITY),
        (0.0, 0.3),
        (0.0, 0.3),
        (0.0, 0.20),
        (0.0, 0.18),
        (0.0, 0.16),
    ];

    pub fn figures(&self) -> [f32; 11] {
        [
            self.mean_word_length,
            self.symbol_ratio,
            self.bullet_lines,
            self.ellipsis_lines,
            self.alphabetic_words,
            self.stop_words,
            self.duplicate_lines,
            self.duplicate_paragraphs,
            self.top_2_gram,
            self.top_3_gram,
            self.top_4_gram,
        ]
    }

    pub(crate) fn from_figures(figures: [f32; 11]) -> Self {
        let [mean_word_length, symbol_ratio, bullet_lines, ellipsis_lines, alphabetic_words, ..] =
            figures;
        let [.., stop_words, duplicate_lines, duplicate_paragraphs, two, three, four] = figures;
        Quality {
            mean_word_length,
            symbol_ratio,
            bullet_lines,
            ellipsis_lines,
            alphabetic_words,
            stop_words,
            duplicate_lines,
            duplicate_paragraphs,
            top_2_gram: two,
            top_3_gram: three,
            top_4_gram: four,
        }
    }

    /// The names of the figures outside what the filters would accept.
    pub fn unusual(&self) -> Vec<&'static str> {
        let outside = |(&(low, high), figure): (&(f32, f32), f32)| figure < low || figure > high;
        let judged = Quality::ACCEPTED.iter().zip(self.figures()).map(outside);
        Quality::NAMES.into_iter().zip(judged).filter(|(_, out)| *out).map(|(n, _)| n).collect()
    }

    /// Measures `text`; all figures of an empty one are 0.
    pub fn of(text: &str) -> Self {
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() {
            return Quality::default();
        }
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let paragraphs: Vec<&str> =
            text.split("\n\n").map(str::trim).filter(|p| !p.is_empty()).collect();
        let characters: usize = words.iter().map(|w| w.chars().count()).sum();
        let symbols = text.matches(['#', '…']).count() + text.matches("...").count();
        let bullet = |l: &&&str| l.starts_with(['-', '*', '•']);
        let ellipsis = |l: &&&str| l.ends_with('…') || l.ends_with("...");
        let alphabetic = |w: &&&str| w.chars().any(char::is_alphabetic);
        let stop = ["the", "be", "to", "of", "and", "that", "have", "with"];
        let stop_words = stop.iter().filter(|s| words.iter().any(|w| w.eq_ignore_ascii_case(s)));
        let share = |part: usize, whole: usize| part as f32 / whole as f32;
        Quality {
            mean_word_length: share(characters, words.len()),
            symbol_ratio: share(symbols, words.len()),
            bullet_lines: share(lines.iter().filter(bullet).count(), lines.len()),
            ellipsis_lines: share(lines.iter().filter(ellipsis).count(), lines.len()),
            alphabetic_words: share(words.iter().filter(alphabetic).count(), words.len()),
            stop_words: stop_words.count() as f32,
            duplicate_lines: duplicates(&lines),
            duplicate_paragraphs: duplicates(&paragraphs),
            top_2_gram: top_gram(&words, 2, characters),
            top_3_gram: top_gram(&words, 3, characters),
            top_4_gram: top_gram(&words, 4, characters),
        }
    }
}

fn duplicates(parts: &[&str]) -> f32 {
    let different: std::collections::HashSet<&&str> = parts.iter().collect();
    (parts.len() - different.len()) as f32 / parts.len().max(1) as f32
}

/// The share of all characters that stand in the n-gram which covers most.
fn top_gram(words: &[&str], n: usize, characters: usize) -> f32 {
    let mut counts: HashMap<&[&str], usize> = HashMap::new();
    for gram in words.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    let covered = |(gram, count): (&&[&str], &usize)| {
        count * gram.iter().map(|w| w.chars().count()).sum::<usize>()
    };
    let most = counts.iter().filter(|(_, count)| **count > 1).map(covered).max().unwrap_or(0);
    most as f32 / characters as f32
}

/// Characters looked at to tell the language; more change nothing.
const LANGUAGE_SAMPLE: usize = 20_000;

/// The ISO 639-3 code of the text's most likely language and the confidence in it.
pub(crate) fn language(text: &str) -> (String, f32) {
    let sample: String = text.chars().take(LANGUAGE_SAMPLE).collect();
    match whatlang::detect(&sample) {
        Some(info) => (info.lang().code().into(), info.confidence() as f32),
        None => (String::new(), 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_within_what_the_filters_accept_and_a_bare_list_is_not() {
        let prose = "The spindle turns clockwise with M3. Stop it with M5 and wait until it rests. \
                     Operators have to close the door before the cycle starts.";
        assert_eq!(Quality::of(prose).unusual(), Vec::<&str>::new());
        assert_eq!(language(prose).0, "eng");
        let list = "- 12 ...\n- 13 ...\n- 12 ...\n- 12 ...\n";
        let unusual = Quality::of(list).unusual();
        for name in ["bullet_lines", "ellipsis_lines", "alphabetic_words", "duplicate_lines"] {
            assert!(unusual.contains(&name), "{name} in {unusual:?}");
        }
        assert_eq!(Quality::of(" \n"), Quality::default());
    }

    #[test]
    fn figures_round_trip() {
        let figures = std::array::from_fn(|i| i as f32);
        assert_eq!(Quality::from_figures(figures).figures(), figures);
    }

    #[test]
    fn german_is_told_from_english() {
        let text = "Die Spindel dreht sich im Uhrzeigersinn, bis der Bediener sie anhält.";
        assert_eq!(language(text).0, "deu");
    }
}
