//! The little grammar that templates need: sentences, articles, number, case, verbs.

mod vocabulary;

use std::collections::HashSet;

use vocabulary::{ABBREVIATIONS, AUXILIARIES, FUNCTION_WORDS, PRONOUNS, ROLES, VERBS};

/// Words of `text` without surrounding punctuation, in lower case.
pub(crate) fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !(c.is_alphanumeric() || "-_/.°%".contains(c)))
        .map(|word| word.trim_matches(|c: char| "-_/.".contains(c)).to_lowercase())
        .filter(|word| !word.is_empty())
        .collect()
}

pub(crate) fn word_count(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Whether a sentence holds a number, or a name: a capital letter behind its first word.
pub(crate) fn is_specific(sentence: &str) -> bool {
    let later = sentence.split_whitespace().skip(1);
    sentence.contains(|c: char| c.is_ascii_digit())
        || later
            .map(|word| word.trim_start_matches(['"', '“', '(']))
            .any(|word| word.starts_with(char::is_uppercase) && word != "I")
}

/// Splits running text into sentences. Each keeps its closing mark.
pub(crate) fn sentences(text: &str) -> Vec<String> {
    let tokens: Vec<&str> = text.split_whitespace().collect();
    let mut found = Vec::new();
    let mut start = 0;
    for (index, token) in tokens.iter().enumerate() {
        let bare = token.trim_end_matches(['"', '”', ')', '’']);
        let closes = bare.ends_with(['.', '!', '?'])
            && !ABBREVIATIONS.contains(&bare.trim_start_matches('(').to_lowercase().as_str())
            && !(bare.len() == 2 && bare.starts_with(char::is_uppercase));
        let next_opens = tokens.get(index + 1).is_none_or(|next| {
            next.trim_start_matches(['"', '“', '('])
                .starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit())
        });
        if closes && next_opens {
            found.push(tokens[start..=index].join(" "));
            start = index + 1;
        }
    }
    if start < tokens.len() {
        found.push(tokens[start..].join(" "));
    }
    found
}

/// With an upper-case first letter, unless the first word is a code such as `eHandle` or `p3`.
pub(crate) fn capitalise(text: &str) -> String {
    let first = text.split_whitespace().next().unwrap_or("");
    if first.chars().skip(1).any(|c| c.is_uppercase() || c.is_ascii_digit() || c == '_') {
        return text.to_owned();
    }
    let mut chars = text.chars();
    match chars.next() {
        Some(c) => c.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(c) => c.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// A sentence's beginning as it stands inside another sentence, or `None` where it may be a name.
pub(crate) fn inside_sentence(text: &str) -> Option<String> {
    let first = text.split_whitespace().next()?;
    let plain = first.trim_end_matches([',', ':']).to_lowercase();
    FUNCTION_WORDS.contains(&plain.as_str()).then(|| lower_first(text))
}

/// The words that a collection writes in lower case: what tells `Pump` from the name `Pelorin`.
#[derive(Default)]
pub(crate) struct Lexicon {
    lower: HashSet<String>,
}

impl Lexicon {
    pub(crate) fn add(&mut self, text: &str) {
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '-');
        let lower = words
            .filter(|w| w.chars().count() > 1 && w.chars().all(|c| c.is_lowercase() || c == '-'));
        self.lower.extend(lower.map(str::to_owned));
    }

    /// A cell, label or term as it stands inside a sentence: `Clean the tank` loses its capital,
    /// `Hollan relay`, `Hall 3`, `PTFE tape` and `Monday to Friday` keep theirs.
    pub(crate) fn inside(&self, text: &str) -> String {
        let mut tokens = text.split_whitespace();
        let (Some(first), second) = (tokens.next(), tokens.next()) else { return String::new() };
        let plain = first.trim_end_matches([',', ':', ';']).to_lowercase();
        let ordinary = first.starts_with(char::is_uppercase)
            && first.chars().count() > 1
            && first.chars().skip(1).all(|c| c.is_lowercase() || "-,:;".contains(c));
        let known = self.lower.contains(&plain)
            || FUNCTION_WORDS.contains(&plain.as_str())
            || is_verb_base(&plain);
        let name_follows = second.is_some_and(|w| {
            w.starts_with(char::is_uppercase) && !w.chars().nth(1).is_some_and(char::is_uppercase)
                || is_code(w)
        }) && !is_verb_base(&plain);
        let numbered = second.is_some_and(|w| w.starts_with(|c: char| c.is_ascii_digit()))
            && !is_verb_base(&plain)
            && tokens.next().is_none();
        let capitals =
            text.split_whitespace().filter(|w| w.starts_with(char::is_uppercase)).count();
        let title = capitals > 2 && capitals == text.split_whitespace().count();
        if ordinary && known && !title && !name_follows && !numbered && !is_calendar(&plain) {
            lower_first(text)
        } else {
            text.to_owned()
        }
    }
}

/// An order as it stands inside a sentence: `Clean the tank` loses its capital.
pub(crate) fn inside_order(text: &str) -> String {
    let first = text.split_whitespace().next().unwrap_or("").to_lowercase();
    if is_verb_base(&first) || FUNCTION_WORDS.contains(&first.as_str()) {
        lower_first(text)
    } else {
        text.to_owned()
    }
}

fn is_calendar(word: &str) -> bool {
    const NAMES: &[&str] = &[
        "monday",
        "tuesday",
        "wednesday",
        "thursday",
        "friday",
        "saturday",
        "sunday",
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
        "mondays",
        "fridays",
    ];
    NAMES.contains(&word)
}

/// An identifier: `E-217`, `K417`, `G54`, `4711`, `spindle.0.speed`.
pub(crate) fn is_code(text: &str) -> bool {
    let digit = text.chars().any(|c| c.is_ascii_digit());
    let letter = text.chars().any(char::is_alphabetic);
    !text.contains(char::is_whitespace)
        && text.len() <= 24
        && (digit && (letter || text.contains(['-', '.', '/'])) || text.contains('_'))
}

/// A number with or without unit: nothing that could be a subject.
pub(crate) fn is_bare_number(text: &str) -> bool {
    let text = text.trim_matches(|c: char| "~<>≤≥±+-–— ".contains(c));
    !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || ".,:%".contains(c))
}

/// The singular of a column header's noun: `Fault codes` → `fault code`.
pub(crate) fn singular(noun: &str) -> String {
    let keep = ["ss", "us", "is", "ics"].iter().any(|end| noun.ends_with(end));
    if keep || !noun.ends_with('s') || noun.len() < 4 {
        noun.to_owned()
    } else if let Some(stem) = noun.strip_suffix("ies") {
        format!("{stem}y")
    } else if ["ches", "shes", "xes", "sses"].iter().any(|end| noun.ends_with(end)) {
        noun[..noun.len() - 2].to_owned()
    } else {
        noun[..noun.len() - 1].to_owned()
    }
}

/// Whether a noun phrase is plural, judged by its determiner and its head.
pub(crate) fn is_plural(phrase: &str) -> bool {
    let lower = phrase.to_lowercase();
    let tokens: Vec<&str> = lower.split_whitespace().collect();
    match tokens.first() {
        Some(&("a" | "an" | "each" | "every" | "this" | "one")) => return false,
        Some(&("these" | "those" | "all" | "both" | "two" | "three" | "many" | "several")) => {
            return true;
        }
        _ => {}
    }
    let end = tokens.iter().position(|t| is_preposition(t)).unwrap_or(tokens.len());
    let Some(head) = tokens[..end].last() else { return false };
    let head = head.trim_matches(|c: char| !c.is_alphanumeric());
    (head.ends_with('s') && singular(head) != head && !is_code(head))
        || ["people", "staff", "data"].contains(&head)
        || tokens[..end].contains(&"and")
}

pub(crate) fn is_preposition(word: &str) -> bool {
    const WORDS: &[&str] = &[
        "of", "in", "on", "at", "for", "from", "to", "with", "without", "by", "under", "over",
        "between", "above", "below", "after", "before", "per", "within", "behind", "beside",
        "near", "through", "during", "until", "into", "outside", "inside",
    ];
    WORDS.contains(&word)
}

/// `the` before a common noun phrase; nothing before names, codes, plurals and phrases that have
/// an article. Common nouns are in lower case already.
pub(crate) fn with_article(phrase: &str) -> String {
    let tokens: Vec<&str> = phrase.split_whitespace().collect();
    let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else { return String::new() };
    let lower = first.to_lowercase();
    if FUNCTION_WORDS.contains(&lower.as_str()) {
        return lower_first(phrase);
    }
    let names = tokens.iter().filter(|t| t.starts_with(char::is_uppercase)).count();
    let numbered = last.starts_with(|c: char| c.is_ascii_digit());
    let name = names == tokens.len() || numbered || is_code(last) || is_calendar(&lower);
    if name || tokens.len() == 1 || is_plural(phrase) || is_verb_base(&lower) && names == 0 {
        return phrase.to_owned();
    }
    format!("the {phrase}")
}

/// `an` before a vowel sound, `a` otherwise.
pub(crate) fn article(noun: &str) -> &'static str {
    let lower = noun.to_lowercase();
    let vowel = lower.starts_with(['a', 'e', 'i', 'o'])
        || lower.starts_with('u')
            && !["uni", "use", "usa", "uti"].iter().any(|p| lower.starts_with(p));
    if vowel { "an" } else { "a" }
}

pub(crate) fn is_auxiliary(word: &str) -> bool {
    AUXILIARIES.contains(&word)
}

/// Whether a sentence that begins with this word needs its neighbour to be understood.
pub(crate) fn is_pronoun(word: &str) -> bool {
    PRONOUNS.contains(&word)
}

pub(crate) fn is_verb_base(word: &str) -> bool {
    VERBS.binary_search(&word).is_ok()
}

/// The base form of a verb in the third person singular.
pub(crate) fn base_of_third(word: &str) -> Option<&'static str> {
    let find = |stem: &str| VERBS.binary_search(&stem).ok().map(|index| VERBS[index]);
    if let Some(stem) = word.strip_suffix("ies") {
        return find(&format!("{stem}y"));
    }
    let stem = word.strip_suffix('s')?;
    find(stem).or_else(|| find(stem.strip_suffix('e')?))
}

/// Whether the word looks like a past participle: what may follow `is` or `must be`.
pub(crate) fn is_participle(word: &str) -> bool {
    const IRREGULAR: &[&str] = &[
        "kept", "held", "made", "sent", "set", "put", "found", "given", "taken", "written", "run",
        "shut", "cut", "hung", "worn", "read", "paid", "done", "built", "bought", "sold", "left",
        "lit", "fed", "reset", "drawn", "shown", "known", "led", "valid", "due",
    ];
    word.len() > 3 && word.ends_with("ed") || IRREGULAR.contains(&word)
}

/// Whether the subject acts as a person: asked for with `who`.
pub(crate) fn is_person(subject: &str) -> bool {
    let lower = subject.to_lowercase();
    let tokens: Vec<&str> = lower.split_whitespace().collect();
    let end = tokens.iter().position(|t| is_preposition(t)).unwrap_or(tokens.len());
    let title =
        matches!(tokens.first(), Some(&("ms" | "mr" | "mrs" | "dr" | "ms." | "mr." | "dr.")));
    title || tokens[..end].last().is_some_and(|head| ROLES.contains(head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_sorted_for_the_search() {
        assert!(VERBS.is_sorted());
        assert_eq!(base_of_third("supplies"), Some("supply"));
        assert_eq!(base_of_third("reaches"), Some("reach"));
        assert_eq!(base_of_third("signs"), Some("sign"));
        assert_eq!(base_of_third("bolts"), None);
    }

    #[test]
    fn sentences_end_where_a_new_one_begins() {
        let text = "Use approx. 3.5 ml. The pump (max. 4 bar) stops. See Fig. 3 of it.";
        assert_eq!(
            sentences(text),
            ["Use approx. 3.5 ml.", "The pump (max. 4 bar) stops.", "See Fig. 3 of it."]
        );
    }

    #[test]
    fn values_keep_the_capitals_of_names() {
        let mut lexicon = Lexicon::default();
        lexicon.add("in the hall, a relay is tested weekly");
        for (input, expected) in [
            ("Clean the tank", "clean the tank"),
            ("Check PTFE tape", "check PTFE tape"),
            ("Hollan relay weld", "Hollan relay weld"),
            ("Relay weld", "relay weld"),
            ("Hall 3", "Hall 3"),
            ("Ms. Lind", "Ms. Lind"),
            ("Monday to Friday", "Monday to Friday"),
            ("Weekly", "weekly"),
            ("PTFE tape", "PTFE tape"),
        ] {
            assert_eq!(lexicon.inside(input), expected);
        }
    }

    #[test]
    fn articles_stand_before_common_nouns_only() {
        for (input, expected) in [
            ("coolant pump", "the coolant pump"),
            ("Skallen 40 crankcase", "the Skallen 40 crankcase"),
            ("Morvane 220", "Morvane 220"),
            ("E-217", "E-217"),
            ("Pump P-3", "Pump P-3"),
            ("Ms. Lind", "Ms. Lind"),
            ("The oven", "the oven"),
            ("drive belts", "drive belts"),
        ] {
            assert_eq!(with_article(input), expected);
        }
    }
}
