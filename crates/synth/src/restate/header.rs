//! What a column header or label says: its phrase, its unit, its kind.

use crate::english;

/// What is asked for by an attribute; decides the wording of questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Meaning,
    Title,
    Cause,
    Remedy,
    Interval,
    Location,
    Supplier,
    Person,
    Limit,
    Target,
    Duration,
    Date,
    Quantity,
    Price,
    Purpose,
    Contact,
    Colour,
    Material,
    Tool,
    Other,
}

/// A header's grammar.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Grammar {
    /// `interval`: the interval of the subject is …
    Noun,
    /// `approved by`, `kept in`, `raised when`: the subject is approved by …
    Passive { participle: String, preposition: String },
    /// `contains`: the subject contains …
    Verb(&'static str),
    /// `must consult`, `may decide alone`: the modal and what follows it.
    Modal { modal: String, verb: String },
    /// `certificate needed`, `pieces inspected`.
    Participle { noun: String, participle: String },
    /// `what is checked`, `where to report`.
    Question,
    /// Anything that is no noun in the singular: `copy goes to`, `duties`.
    Label,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Header {
    /// In lower case, abbreviations written out, without the unit.
    pub(crate) phrase: String,
    pub(crate) unit: Option<String>,
}

/// Words that give a header its kind; the first match decides.
const KINDS: &[(Kind, &[&str])] = &[
    (Kind::Interval, &["interval", "frequency", "how often", "every", "cycle"]),
    (
        Kind::Remedy,
        &[
            "remedy",
            "fix",
            "action",
            "what to do",
            "measure",
            "response",
            "solution",
            "correction",
            "countermeasure",
            "repair",
            "treatment",
        ],
    ),
    (Kind::Cause, &["cause", "reason", "why", "root cause", "likely cause"]),
    (Kind::Contact, &["phone", "extension", "e-mail", "email", "telephone", "contact"]),
    (
        Kind::Person,
        &[
            "responsible",
            "role",
            "who",
            "owner",
            "approver",
            "signatory",
            "person",
            "keeper",
            "holder",
            "inspector",
            "deputy",
            "supervisor",
            "specialist",
            "leader",
            "operator",
        ],
    ),
    (Kind::Supplier, &["supplier", "vendor", "manufacturer", "maker"]),
    (
        Kind::Location,
        &[
            "location", "shelf", "where", "place", "bin", "rack", "room", "storage", "bay", "site",
            "store", "cabinet", "drawer", "position", "building", "hall",
        ],
    ),
    (Kind::Limit, &["limit", "maximum", "minimum", "threshold", "tolerance", "max", "min"]),
    (Kind::Target, &["setpoint", "set", "target", "nominal", "setting", "default", "normal"]),
    (
        Kind::Duration,
        &["duration", "how long", "lead time", "retention", "shelf life", "validity", "period"],
    ),
    (Kind::Price, &["price", "cost", "fee", "charge"]),
    (Kind::Quantity, &["quantity", "qty", "stock", "count", "pieces"]),
    (Kind::Date, &["date", "due", "deadline", "day", "when"]),
    (Kind::Purpose, &["purpose", "use", "function", "used for"]),
    (Kind::Colour, &["colour", "color"]),
    (Kind::Material, &["material", "grade", "alloy"]),
    (Kind::Tool, &["tool", "equipment", "instrument", "ppe"]),
    (Kind::Title, &["title", "name", "designation"]),
    (
        Kind::Meaning,
        &[
            "meaning",
            "description",
            "definition",
            "explanation",
            "fault",
            "message",
            "symptom",
            "defect",
            "indication",
            "what it means",
            "alarm",
            "problem",
            "failure",
        ],
    ),
];

const ABBREVIATIONS: &[(&str, &str)] = &[
    ("max", "maximum"),
    ("max.", "maximum"),
    ("min.", "minimum"),
    ("min", "minimum"),
    ("qty", "quantity"),
    ("qty.", "quantity"),
    ("no.", "number"),
    ("nr.", "number"),
    ("temp.", "temperature"),
    ("temp", "temperature"),
    ("resp.", "responsible person"),
    ("avg.", "average"),
    ("dept.", "department"),
    ("approx.", "approximate"),
    ("freq.", "frequency"),
    ("dia.", "diameter"),
    ("tel.", "telephone number"),
    ("desc.", "description"),
    ("std.", "standard"),
    ("amt.", "amount"),
    ("ref.", "reference"),
    ("loc.", "location"),
];

/// Headers that do not read as a noun by themselves.
const PHRASES: &[(&str, &str)] = &[
    ("responsible", "responsible person"),
    ("who", "responsible person"),
    ("where", "location"),
    ("how often", "interval"),
    ("how long", "duration"),
    ("what to do", "remedy"),
    ("action to take", "action to take"),
    ("max", "maximum"),
    ("min", "minimum"),
    ("when", "time"),
    ("why", "reason"),
    ("due", "due date"),
    ("lowest", "lowest value"),
    ("highest", "highest value"),
    ("normal", "normal value"),
];

const UNITS: &[&str] = &[
    "°c", "c", "k", "bar", "mbar", "kpa", "mpa", "pa", "psi", "mm", "cm", "m", "µm", "um", "km",
    "l", "litres", "liters", "ml", "kg", "g", "t", "mg", "s", "sec", "seconds", "min", "minutes",
    "h", "hours", "d", "days", "weeks", "months", "years", "nm", "n·m", "kn", "n", "v", "a", "ma",
    "w", "kw", "kwh", "hz", "rpm", "%", "percent", "eur", "€", "usd", "$", "pcs", "pieces",
    "l/min", "m3/h", "m³/h", "mm/s", "ppm", "db", "db(a)", "ph", "µs/cm", "bar g", "barg", "mm2",
    "grams",
];

/// Headers under which rows are named as attributes: `Parameter | Value`.
const PROPERTY: &[&str] = &[
    "parameter",
    "property",
    "item",
    "field",
    "setting",
    "characteristic",
    "attribute",
    "quantity",
    "topic",
    "key",
    "subject",
    "",
];

const ORDINAL: &[&str] = &["#", "no", "no.", "nr", "nr.", "pos", "pos.", "number", "line", ""];

pub(crate) fn is_property(header: &str) -> bool {
    PROPERTY.contains(&header.trim().to_lowercase().as_str())
}

pub(crate) fn is_ordinal(header: &str) -> bool {
    ORDINAL.contains(&header.trim().to_lowercase().as_str())
}

pub(crate) fn is_unit(header: &str) -> bool {
    ["unit", "units"].contains(&header.trim().to_lowercase().as_str())
}

/// Whether a word after a number belongs to it: `14 days`.
pub(crate) fn is_unit_word(word: &str) -> bool {
    let word = word.to_lowercase();
    let singular = [
        "hour", "day", "week", "month", "year", "minute", "second", "degrees", "litre", "metres",
        "metre", "microns", "newton", "turns", "drops", "steps", "persons", "lots",
    ];
    UNITS.contains(&word.as_str()) && word.len() > 1 || singular.contains(&word.as_str())
}

/// What a key column's cells are, in the singular: `Fault codes` → `fault code`. Empty where the
/// header says nothing of it.
pub(crate) fn noun(header: &str) -> String {
    let phrase = read(header).phrase;
    let vague = [
        "name",
        "item",
        "property",
        "parameter",
        "value",
        "id",
        "key",
        "what",
        "term",
        "word",
        "goods",
    ];
    if vague.contains(&phrase.as_str()) || is_ordinal(header) || english::word_count(&phrase) > 3 {
        return String::new();
    }
    english::singular(&phrase)
}

pub(crate) fn read(header: &str) -> Header {
    let mut text = header.trim().trim_end_matches([':', '?', '*']).trim().to_owned();
    let mut unit = None;
    for (open, close) in [('(', ')'), ('[', ']')] {
        if let (Some(start), Some(end)) = (text.find(open), text.rfind(close))
            && start < end
        {
            let inside = text[start + 1..end].trim().to_owned();
            if UNITS.contains(&inside.to_lowercase().as_str()) {
                unit = Some(inside);
            }
            text = format!("{} {}", &text[..start], &text[end + close.len_utf8()..]);
        }
    }
    if let Some((before, last)) = text.rsplit_once([',', ' '])
        && (text.contains(',')
            || ["°c", "bar", "mm", "kg", "%", "rpm"].contains(&last.to_lowercase().as_str()))
        && UNITS.contains(&last.trim().to_lowercase().as_str())
    {
        unit = Some(last.trim().to_owned());
        text = before.trim_end_matches([',', ' ', ' ']).to_owned();
    }
    let words: Vec<String> = text.split_whitespace().map(written_out).collect();
    let phrase = words.join(" ");
    let phrase =
        PHRASES.iter().find(|(from, _)| *from == phrase).map_or(phrase, |(_, to)| (*to).into());
    Header { phrase, unit }
}

/// A header word in lower case, save acronyms and codes, with its abbreviation written out.
fn written_out(word: &str) -> String {
    let acronym = word.chars().filter(|c| c.is_uppercase()).count() > 1 || english::is_code(word);
    let lower = if acronym { word.to_owned() } else { word.to_lowercase() };
    ABBREVIATIONS
        .iter()
        .find(|(short, _)| *short == lower)
        .map_or(lower, |(_, long)| (*long).into())
}

/// Adjectives that make a limit of any quantity.
const LIMITING: &[&str] =
    &["lowest", "highest", "maximum", "minimum", "permitted", "allowed", "admissible"];

/// The kind of a header's head: the last word before a preposition, so that `supplier code` is a
/// code and `action limit` a limit. Phrases of several words (`how often`) go first.
pub(crate) fn kind(header: &str) -> Kind {
    let phrase = read(header).phrase.to_lowercase();
    let words = english::words(&phrase);
    let end = words.iter().position(|w| english::is_preposition(w)).unwrap_or(words.len()).max(1);
    let head = words.get(end - 1).map_or(String::new(), |head| english::singular(head));
    let several = |word: &&str| word.contains(' ') && phrase.contains(*word);
    let find = |fits: &dyn Fn(&&str) -> bool| {
        KINDS.iter().find(|(_, names)| names.iter().any(fits)).map(|(kind, _)| *kind)
    };
    if let Some(kind) = find(&several).or_else(|| find(&|word: &&str| **word == head)) {
        return kind;
    }
    let limiting = words.iter().any(|word| LIMITING.contains(&word.as_str()));
    if limiting { Kind::Limit } else { Kind::Other }
}

pub(crate) fn grammar(phrase: &str) -> Grammar {
    let words: Vec<&str> = phrase.split_whitespace().collect();
    let (Some(first), Some(last)) = (words.first(), words.last()) else { return Grammar::Noun };
    if ["what", "who", "where", "when", "how", "which", "why"].contains(first) && words.len() > 1 {
        return Grammar::Question;
    }
    if words.len() >= 2 && ["must", "may", "can", "shall", "should", "will"].contains(first) {
        let verb = words[1..].join(" ");
        return Grammar::Modal { modal: (*first).into(), verb };
    }
    let ends_passive = english::is_preposition(last) || *last == "when" || *last == "if";
    if words.len() >= 2 && ends_passive && english::is_participle(first) {
        let participle = words[..words.len() - 1].join(" ");
        return Grammar::Passive { participle, preposition: (*last).into() };
    }
    if words.len() >= 2 && english::is_participle(last) && !english::is_participle(first) {
        let noun = words[..words.len() - 1].join(" ");
        return Grammar::Participle { noun, participle: (*last).into() };
    }
    if let (Some(base), 1) = (english::base_of_third(first), words.len())
        && VERB_HEADERS.contains(&base)
    {
        return Grammar::Verb(base);
    }
    if english::is_preposition(last) || english::is_plural(phrase) {
        return Grammar::Label;
    }
    Grammar::Noun
}

/// Verbs whose third person as a header is no plural noun.
const VERB_HEADERS: &[&str] = &[
    "contain", "mean", "require", "include", "supply", "deliver", "prevent", "produce", "receive",
    "indicate", "protect", "need", "serve", "approve", "describe", "apply", "replace", "follow",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read() {
        let check = |header: &str, phrase: &str, unit: Option<&str>, expected: Kind| {
            assert_eq!(read(header), Header { phrase: phrase.into(), unit: unit.map(Into::into) });
            assert_eq!(kind(header), expected, "{header}");
        };
        check("Max. temperature (°C)", "maximum temperature", Some("°C"), Kind::Limit);
        check("Responsible", "responsible person", None, Kind::Person);
        check("Cleaning interval", "cleaning interval", None, Kind::Interval);
        check("What to do", "remedy", None, Kind::Remedy);
        check("Pressure, bar", "pressure", Some("bar"), Kind::Other);
        assert_eq!(noun("Fault codes"), "fault code");
    }

    #[test]
    fn headers_have_a_grammar() {
        let passive =
            |p: &str, q: &str| Grammar::Passive { participle: p.into(), preposition: q.into() };
        assert_eq!(grammar("filled in by"), passive("filled in", "by"));
        assert_eq!(grammar("raised when"), passive("raised", "when"));
        assert_eq!(grammar("contains"), Grammar::Verb("contain"));
        assert_eq!(grammar("what is checked"), Grammar::Question);
        assert_eq!(grammar("stop limit"), Grammar::Noun);
        assert_eq!(grammar("copy goes to"), Grammar::Label);
        let modal = Grammar::Modal { modal: "must".into(), verb: "consult".into() };
        assert_eq!(grammar("must consult"), modal);
        let needed =
            Grammar::Participle { noun: "certificate".into(), participle: "needed".into() };
        assert_eq!(grammar("certificate needed"), needed);
    }
}
