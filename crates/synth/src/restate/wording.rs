//! Templates of attributes, as data.
//!
//! `{key}` is the subject with its article or noun, `{Key}` the same at a sentence's beginning;
//! `{attr}` the attribute, `{syn}` the attribute or a synonym; `{value}` the value inside a
//! sentence, `{Value}` standing alone, `{who}` the value with an article where it is a role;
//! `{noun}` what the subject is; `{plain}` the bare key; `{is}`, `{does}`, `{has}` agree with the
//! subject. A template that starts with `~` also takes values that are too long to stand as a
//! noun; one with `!` is for values that are orders (`clean the tank`), one with `^` for subjects
//! that are tasks (`{task}`: `clean the tank`).

use super::header::Kind;

#[derive(Clone, Copy)]
pub(super) struct Wording {
    pub(super) kind: Kind,
    pub(super) synonyms: &'static [&'static str],
    pub(super) statements: &'static [&'static str],
    pub(super) questions: &'static [&'static str],
    pub(super) reverse: &'static [&'static str],
    /// Questions without `{key}`, for attributes of what a section is about.
    pub(super) properties: &'static [&'static str],
}

/// For every kind.
pub(super) const ANY: Wording = Wording {
    kind: Kind::Other,
    properties: &[],
    synonyms: &[],
    statements: &[
        "~The {syn} of {key} is: {value}.",
        "The {attr} of {key} is {value}.",
        "For {key}, the {syn} is {value}.",
        "~For {key}, the {attr} is as follows: {value}.",
        "~{Key}: {attr} – {value}.",
        "~{Attr} of {key}: {value}.",
        "{Value} is the {syn} of {key}.",
        "~If you are asked for the {attr} of {key}, the answer is: {value}.",
        "{Key} {has} {value} as {attr}.",
        "The {attr} that belongs to {key} is {value}.",
        "~Under {attr}, the entry for {key} reads: {value}.",
        "~Remember for {key}: the {syn} is {value}.",
    ],
    questions: &[
        "~What is the {attr} of {key}?",
        "~What is the {syn} of {key}?",
        "~What is the {syn} for {key}?",
        "Which {attr} {does} {key} have?",
        "Which {syn} applies to {key}?",
        "~Tell me the {syn} of {key}.",
        "~I need the {attr} of {key}. What is it?",
        "~{Key}: what is the {syn}?",
        "~What is given as the {attr} of {key}?",
        "~Look up {key}. What is its {attr}?",
        "~State the {attr} for {key}.",
        "~A colleague asks about {key}. What is the {syn}?",
        "Which {attr} belongs to {key}?",
        "~What do you find under {attr} for {key}?",
    ],
    reverse: &[
        "Which {noun} has the {attr} {value}?",
        "~Which {noun} has this {syn}: {value}?",
        "~The {attr} is: {value}. Which {noun} is meant?",
        "Name the {noun} with the {syn} {value}.",
        "{Value} is the {attr} of which {noun}?",
        "~For which {noun} is the {syn} {value}?",
        "~Which {noun} do you think of when the {attr} is {value}?",
        "~{Attr}: {value}. What is the {noun}?",
        "~To which {noun} does this {attr} belong: {value}?",
        "~I have the {attr} ({value}) and look for the {noun}. Which one is it?",
    ],
};

pub(super) const KINDS: &[Wording] = &[
    Wording {
        kind: Kind::Meaning,
        properties: &[],
        synonyms: &["meaning", "description"],
        statements: &[
            "~{Key} means: {value}.",
            "{Key} {stands} for {value}.",
            "~What {key} {says}: {value}.",
            "~When {key} appears, it means: {value}.",
        ],
        questions: &[
            "~What {does} {key} mean?",
            "~What {does} {key} stand for?",
            "~How {is} {key} to be understood?",
            "~What {is} {key}?",
            "~What {does} {key} tell you?",
        ],
        reverse: &[
            "~Which {noun} means: {value}?",
            "Which {noun} stands for {value}?",
            "~Which {noun} is used for this: {value}?",
            "~{Value}: which {noun} is that?",
            "~Which {noun} do you get with {value}?",
        ],
    },
    Wording {
        kind: Kind::Title,
        properties: &[],
        synonyms: &["title", "name"],
        statements: &[
            "{Key} {is} called {value}.",
            "{Key} {is} the {value}.",
            "The name of {key} is {value}.",
            "The {value} has the number {plain}.",
        ],
        questions: &[
            "~What {is} {key}?",
            "~What {is} {key} called?",
            "~By what name {is} {key} known?",
            "~What do you call {key}?",
        ],
        reverse: &[
            "Which {noun} is the {value}?",
            "Which {noun} is called {value}?",
            "Under which number do you find the {value}?",
            "I need the {value}. Which {noun} is that?",
            "The {value}: which {noun}?",
        ],
    },
    Wording {
        kind: Kind::Cause,
        properties: &["~What is the cause ({attr})?"],
        synonyms: &["cause", "reason"],
        statements: &[
            "~The cause of {key} is: {value}.",
            "~What lies behind {key}: {value}.",
            "~{Key} {is} caused by this: {value}.",
            "~If you see {key}, suspect: {value}.",
            "{Value} is what causes {key}.",
        ],
        questions: &[
            "~What causes {key}?",
            "~Why {does} {key} occur?",
            "~What is the reason for {key}?",
            "~What should you suspect with {key}?",
            "~What is behind {key}?",
            "~{Key} has come up. What is the likely cause?",
        ],
        reverse: &[
            "~What does this lead to: {value}?",
            "~Which {noun} is caused by {value}?",
            "~Which {noun} results from {value}?",
            "~You have found this: {value}. Which {noun} does it cause?",
        ],
    },
    Wording {
        kind: Kind::Remedy,
        properties: &["~What should be done ({attr})?"],
        synonyms: &["remedy", "fix", "right response", "thing to do"],
        statements: &[
            "!When {key} comes up, {value}.",
            "!In the case of {key}, {value}.",
            "!To deal with {key}, {value}.",
            "~The right response to {key}: {value}.",
            "~What to do about {key}: {value}.",
            "~{Key} is dealt with like this: {value}.",
        ],
        questions: &[
            "~What should be done about {key}?",
            "~How do you deal with {key}?",
            "~What is the right response to {key}?",
            "~What do you do when {key} comes up?",
            "~{Key} has come up. What now?",
            "~How {is} {key} put right?",
            "~What action {does} {key} call for?",
        ],
        reverse: &[
            "~For which {noun} is this the right response: {value}?",
            "!For which {noun} do you have to {value}?",
            "~Which {noun} is dealt with like this: {value}?",
            "!When do you have to {value}: for which {noun}?",
        ],
    },
    Wording {
        kind: Kind::Interval,
        properties: &[
            "~How often ({attr})?",
            "~At what interval ({attr})?",
            "~How frequently ({attr})?",
        ],
        synonyms: &["interval", "frequency"],
        statements: &[
            "~How often for {key} ({attr}): {value}.",
            "~{Key} comes up at this interval ({attr}): {value}.",
            "^You have to {task} at this interval: {value}.",
            "^How often to {task}: {value}.",
            "~The interval to keep for {key} is {value}.",
        ],
        questions: &[
            "~How often {is} {key} due ({attr})?",
            "~At what interval {does} {key} come up ({attr})?",
            "^How often do you have to {task}?",
            "^How often must you {task}?",
            "^When is it time again to {task}?",
            "~How frequently does it come round for {key} ({attr})?",
            "~{Key}: after how long is it time again ({attr})?",
            "~{Key}: how often ({attr})?",
        ],
        reverse: &[
            "~Which {noun} has the interval {value}?",
            "~What comes round at this interval: {value}?",
        ],
    },
    Wording {
        kind: Kind::Location,
        properties: &["~Where ({attr})?", "~In which place ({attr})?"],
        synonyms: &["place", "location"],
        statements: &[
            "~{Key} can be found here: {value}.",
            "~Where to look for {key}: {value}.",
            "{Value} is the place for {key}.",
            "~If you look for {key}, go here: {value}.",
            "~The place of {key} is {value}.",
        ],
        questions: &[
            "~Where {is} {key} found?",
            "~Where {is} {key}?",
            "~Where do you look for {key}?",
            "~In which place {is} {key}?",
            "~I am looking for {key}. Where do I go?",
            "~What is the place of {key}?",
        ],
        reverse: &[
            "~Which {noun} is found here: {value}?",
            "~Which {noun} has its place in {value}?",
            "~What is found in {value}?",
        ],
    },
    Wording {
        kind: Kind::Supplier,
        properties: &["Who is the {attr}?", "From whom does it come ({attr})?"],
        synonyms: &["supplier", "vendor", "source"],
        statements: &[
            "{Key} {comes} from {value}.",
            "{Value} supplies {key}.",
            "{Value} delivers {key}.",
            "We get {key} from {value}.",
        ],
        questions: &[
            "Who supplies {key}?",
            "Who delivers {key}?",
            "Where {does} {key} come from?",
            "From whom do we buy {key}?",
            "Which company supplies {key}?",
            "Which vendor stands behind {key}?",
        ],
        reverse: &[
            "Which {noun} comes from {value}?",
            "What does {value} supply?",
            "Which {noun} do we buy from {value}?",
            "Which {noun} is delivered by {value}?",
        ],
    },
    Wording {
        kind: Kind::Person,
        properties: &["Who is the {attr}?", "Who is named as {attr}?"],
        synonyms: &[],
        statements: &[
            "~For {key}, the {attr} is {who}.",
            "{Who} is in charge of this for {key} ({attr}).",
            "{Who} is named as {attr} for {key}.",
        ],
        questions: &[
            "Who is the {attr} for {key}?",
            "Who is named as {attr} for {key}?",
            "{Key}: who is the {attr}?",
            "Who acts as {attr} for {key}?",
            "To whom do you turn about {key} ({attr})?",
        ],
        reverse: &["For which {noun} is {who} the {attr}?", "What is {who} responsible for?"],
    },
    Wording {
        kind: Kind::Limit,
        properties: &["~Where does the {attr} lie?", "~Which {attr} must be kept?"],
        synonyms: &["limit"],
        statements: &[
            "~The {attr} for {key} lies at {value}.",
            "~{Key} {has} a limit ({attr}): {value}.",
            "~Watch the {attr} of {key}: {value}.",
        ],
        questions: &[
            "~What {attr} is laid down for {key}?",
            "~Where does the {attr} for {key} lie?",
            "~At what value {does} {key} reach the {attr}?",
        ],
        reverse: &["~For which {noun} does the {attr} lie at {value}?"],
    },
    Wording {
        kind: Kind::Target,
        properties: &["~What should the {attr} be?"],
        synonyms: &["target value"],
        statements: &[
            "~{Key} {is} set like this ({attr}): {value}.",
            "~The value to keep for {key} ({attr}) is {value}.",
        ],
        questions: &[
            "~To what value {is} {key} set ({attr})?",
            "~Which {attr} is right for {key}?",
            "~What should the {attr} of {key} be?",
        ],
        reverse: &["~Which {noun} is set to {value} ({attr})?"],
    },
    Wording {
        kind: Kind::Duration,
        properties: &["~How long is the {attr}?", "~How much time is given ({attr})?"],
        synonyms: &["duration"],
        statements: &[
            "~The {attr} for {key} lasts {value}.",
            "~How long ({attr}) for {key}: {value}.",
            "~{Key} {has} a {attr} of {value}.",
        ],
        questions: &[
            "~How long is the {attr} of {key}?",
            "~How much time does the {attr} of {key} come to?",
            "~{Key}: how long is the {attr}?",
        ],
        reverse: &["Which {noun} has {a} {attr} of {value}?"],
    },
    Wording {
        kind: Kind::Date,
        properties: &["~When is the {attr}?"],
        synonyms: &[],
        statements: &["~{Attr} for {key}: {value}.", "~When ({attr}) for {key}: {value}."],
        questions: &[
            "~When is the {attr} of {key}?",
            "~Which {attr} is set for {key}?",
            "~When {does} {key} fall due ({attr})?",
        ],
        reverse: &["~Which {noun} falls on {value} ({attr})?"],
    },
    Wording {
        kind: Kind::Quantity,
        properties: &["~How much is the {attr}?"],
        synonyms: &["quantity", "amount"],
        statements: &[
            "~How much for {key} ({attr}): {value}.",
            "~{Key} {has} {a} {attr} of {value}.",
        ],
        questions: &[
            "~How much is the {attr} for {key}?",
            "~What amount is given as {attr} for {key}?",
            "~How large is the {attr} of {key}?",
        ],
        reverse: &["Which {noun} has {a} {attr} of {value}?"],
    },
    Wording {
        kind: Kind::Price,
        properties: &[],
        synonyms: &["price", "cost"],
        statements: &[
            "~{Key} {costs} {value} ({attr}).",
            "~You pay this for {key} ({attr}): {value}.",
        ],
        questions: &[
            "~How much {does} {key} cost ({attr})?",
            "~What do we pay for {key} ({attr})?",
        ],
        reverse: &["Which {noun} costs {value}?"],
    },
    Wording {
        kind: Kind::Purpose,
        properties: &[],
        synonyms: &["purpose", "use"],
        statements: &[
            "~{Key} {is} there for this: {value}.",
            "~What {key} {is} for: {value}.",
            "~{Key} {serves} this purpose: {value}.",
        ],
        questions: &[
            "~What {is} {key} for?",
            "~What {is} {key} used for?",
            "~What purpose {does} {key} serve?",
        ],
        reverse: &[
            "~Which {noun} is there for this: {value}?",
            "~What do you use for this: {value}?",
            "~Which {noun} serves this purpose: {value}?",
        ],
    },
    Wording {
        kind: Kind::Contact,
        properties: &["~What is the {attr}?"],
        synonyms: &["contact"],
        statements: &["~To reach {key}, use this {attr}: {value}."],
        questions: &[
            "~How do you reach {key} ({attr})?",
            "~Under which {attr} {is} {key} reached?",
        ],
        reverse: &["~Who is reached under {value}?", "~Whose {attr} is {value}?"],
    },
    Wording {
        kind: Kind::Colour,
        properties: &[],
        synonyms: &["colour"],
        statements: &[
            "The {attr} that marks {key} is {value}.",
            "By its {attr}, {key} is {value}.",
        ],
        questions: &[
            "What colour stands for {key} ({attr})?",
            "By which {attr} do you know {key}?",
            "Which colour is the {attr} of {key}?",
        ],
        reverse: &["By its {attr} it is {value}. Which {noun} is it?"],
    },
    Wording {
        kind: Kind::Tool,
        properties: &[],
        synonyms: &["tool"],
        statements: &[
            "~What you need for {key} ({attr}): {value}.",
            "{Key} {calls} for {value} ({attr}).",
        ],
        questions: &[
            "~What do you need for {key} ({attr})?",
            "~With what {is} {key} done ({attr})?",
            "~Which {attr} do you take for {key}?",
        ],
        reverse: &["~For which {noun} do you need {value}?", "~What is {value} used for?"],
    },
];

/// `The subject is filled in by …`. `{part}` is the participle, `{prep}` the preposition.
#[derive(Clone, Copy)]
pub(super) struct Passive {
    pub(super) prepositions: &'static [&'static str],
    pub(super) statements: &'static [&'static str],
    pub(super) questions: &'static [&'static str],
    pub(super) reverse: &'static [&'static str],
}

pub(super) const PASSIVES: &[Passive] = &[
    Passive {
        prepositions: &["by"],
        statements: &[
            "{Key} {is} {part} by {who}.",
            "{Who} is the one by whom {key} {is} {part}.",
            "It is {who} by whom {key} {is} {part}.",
            "{Key} must be {part} by {who}.",
            "~{Attr}, for {key}: {value}.",
        ],
        questions: &[
            "By whom {is} {key} {part}?",
            "Who is it that {key} {is} {part} by?",
            "{Key}: by whom {is} it {part}?",
            "Whose task is it that {key} {is} {part}?",
            "By whom must {key} be {part}?",
            "Which person is responsible for {key} being {part}?",
            "I have {key} in front of me. By whom is it {part}?",
        ],
        reverse: &[
            "Which {noun} is {part} by {who}?",
            "Which {noun} has to be {part} by {who}?",
            "Name the {noun} that is {part} by {who}.",
            "{Who}: which {noun} is {part} by this person?",
        ],
    },
    Passive {
        prepositions: &["for how long"],
        statements: &[
            "~{Key} {is} {part} for {value}.",
            "~For {value}: so long {is} {key} {part}.",
            "~How long {key} {is} {part}: {value}.",
            "~{Attr}, in the case of {key}: {value}.",
        ],
        questions: &[
            "~For how long {is} {key} {part}?",
            "~How long {is} {key} {part}?",
            "~How many years, months, days or hours {is} {key} {part}?",
            "~{Key}: {part} for how long?",
            "~How long must {key} be {part}?",
            "~I have {key} here. How long is it {part}?",
        ],
        reverse: &[
            "~Which {noun} is {part} for {value}?",
            "~What is {part} for {value}?",
            "~Name the {noun} that is {part} for {value}.",
        ],
    },
    Passive {
        prepositions: &["for", "with"],
        statements: &[
            "~{Key} {is} {part} {prep} {value}.",
            "~What {key} {is} {part} {prep}: {value}.",
            "~It is {value} that {key} {is} {part} {prep}.",
            "~{Attr}, in the case of {key}: {value}.",
        ],
        questions: &[
            "~What {is} {key} {part} {prep}?",
            "~{Key}: {part} {prep} what?",
            "~Say what {key} {is} {part} {prep}.",
            "~What must {key} be {part} {prep}?",
        ],
        reverse: &[
            "~Which {noun} is {part} {prep} {value}?",
            "~What is {part} {prep} {value}?",
            "~Name the {noun} that is {part} {prep} {value}.",
            "~I look for the {noun} {part} {prep} {value}. Which one is it?",
        ],
    },
    Passive {
        prepositions: &[
            "in", "on", "at", "under", "near", "behind", "inside", "beside", "to", "from",
        ],
        statements: &[
            "~{Key} {is} {part} {prep} {value}.",
            "~The place where {key} {is} {part}: {value}.",
            "~{Value} is where {key} {is} {part}.",
            "~{Attr}, in the case of {key}: {value}.",
        ],
        questions: &[
            "~Where {is} {key} {part}?",
            "~{Key}: where {is} it {part}?",
            "~{Prep} which place {is} {key} {part}?",
            "~Where must {key} be {part}?",
        ],
        reverse: &[
            "~Which {noun} is {part} {prep} {value}?",
            "~What is {part} {prep} {value}?",
            "~Name the {noun} that is {part} {prep} {value}.",
        ],
    },
    Passive {
        prepositions: &[
            "when", "if", "after", "before", "within", "above", "below", "during", "until",
        ],
        statements: &[
            "~{Key} {is} {part} {prep} {value}.",
            "~{Prep} {value}, {key} {is} {part}.",
            "~{Key}: {part} {prep} {value}.",
        ],
        questions: &[
            "~When {is} {key} {part}?",
            "~In which case {is} {key} {part}?",
            "~{Key}: when {is} it {part}?",
            "~What has to happen for {key} to be {part}?",
        ],
        reverse: &[
            "~Which {noun} is {part} {prep} {value}?",
            "~{Prep} {value}: which {noun} is {part}?",
            "~What is {part} {prep} {value}?",
            "~Which {noun} do you expect {prep} {value}?",
        ],
    },
];

pub(super) const VERB_STATEMENTS: &[&str] = &[
    "~{Key} {verbs} {value}.",
    "~What {key} {verbs}: {value}.",
    "~It is {value} that {key} {verbs}.",
];
pub(super) const VERB_QUESTIONS: &[&str] =
    &["~What {does} {key} {verb}?", "~{Key}: what {does} it {verb}?", "~Say what {key} {verbs}."];
pub(super) const VERB_REVERSE: &[&str] = &[
    "~Which {noun} {thirds} {value}?",
    "~What {thirds} {value}?",
    "~Name the {noun} that {thirds} {value}.",
];

/// For headers that are questions themselves (`what is checked`).
pub(super) const WH_STATEMENTS: &[&str] = &[
    "~{Attr} for {key}: {value}.",
    "~{Key} – {attr}: {value}.",
    "~As to {attr}, for {key} it is: {value}.",
];
pub(super) const WH_QUESTIONS: &[&str] =
    &["~{Attr} for {key}?", "~{Key}: {attr}?", "~For {key}, {attr}?", "~Say {attr} for {key}."];
pub(super) const WH_REVERSE: &[&str] = &[
    "~For which {noun} is this the answer to “{attr}”: {value}?",
    "~{Attr}: {value}. Which {noun} is it?",
];

/// Reverse questions for any passive header.
pub(super) const PASSIVE_REVERSE: &[&str] = &[
    "~{Attr}: {value}. Which {noun} is meant?",
    "~To which {noun} does this belong: {attr} {value}?",
];

/// `certificate needed`: `{thing}` is the noun, `{part}` the participle.
pub(super) const PART_STATEMENTS: &[&str] = &[
    "~The {thing} {part} for {key}: {value}.",
    "~For {key}, the following {thing} {are} {part}: {value}.",
    "~{Key} – {attr}: {value}.",
    "~As to the {thing} {part}, {key} {has} this entry: {value}.",
    "~{Attr} in the case of {key}: {value}.",
];
pub(super) const PART_QUESTIONS: &[&str] = &[
    "~Which {thing} {are} {part} for {key}?",
    "~What {thing} {are} {part} in the case of {key}?",
    "~{Key}: which {thing} {are} {part}?",
    "~What is the entry for {key} under {attr}?",
    "~Say which {thing} {are} {part} for {key}.",
    "~When it comes to {key}, which {thing} {are} {part}?",
    "~A colleague asks about {key}. Which {thing} {are} {part}?",
];
pub(super) const PART_REVERSE: &[&str] = &[
    "~For which {noun} is this the {thing} {part}: {value}?",
    "~{Attr}: {value}. Which {noun} is it?",
    "~Which {noun} goes with this {thing} {part}: {value}?",
    "~To which {noun} does this entry belong? {Attr}: {value}.",
];

/// For labels that fit no sentence.
pub(super) const LABEL_STATEMENTS: &[&str] = &[
    "~{Key} – {attr}: {value}.",
    "~{Attr} for {key}: {value}.",
    "~Under “{attr}”, {key} {has} this: {value}.",
    "~For {key}, the entry under “{attr}” is {value}.",
    "~{Value}: that is the entry of {key} under “{attr}”.",
];
pub(super) const LABEL_QUESTIONS: &[&str] = &[
    "~What stands under “{attr}” for {key}?",
    "~{Key} – {attr}?",
    "~What is the entry for {key} under “{attr}”?",
    "~What do you find for {key} under “{attr}”?",
    "~Look up {key}. What is said under “{attr}”?",
    "~Tell me what {key} {has} under “{attr}”.",
    "~For {key}, what belongs under “{attr}”?",
];
pub(super) const LABEL_REVERSE: &[&str] = &[
    "~Which {noun} has this under “{attr}”: {value}?",
    "~{Attr}: {value}. Which {noun} is it?",
    "~To which {noun} does this entry belong? {Attr}: {value}.",
    "~Under “{attr}” it says: {value}. Which {noun} is meant?",
];

/// For attributes of what a section is about; the scope names the section. Reverse questions all
/// take long values, without a mark.
pub(super) const PROPERTY_STATEMENTS: &[&str] = &[
    "~The {attr}: {value}.",
    "The {attr} is {value}.",
    "{Value} is the {attr}.",
    "~{Attr} – {value}.",
    "~As {attr}, this is laid down: {value}.",
    "~The value for the {attr} reads: {value}.",
    "~Asked for the {attr}, say: {value}.",
];
pub(super) const PROPERTY_QUESTIONS: &[&str] = &[
    "~What is the {attr}?",
    "~Which value is given for the {attr}?",
    "~Tell me the {attr}.",
    "~What value does the {attr} have?",
    "~Do you know the {attr}?",
    "~A colleague asks for the {attr}. What do you say?",
    "~What is laid down as the {attr}?",
];
pub(super) const PROPERTY_REVERSE: &[&str] = &[
    "{Value}: which value of “{plain}” is this?",
    "What is set at {value} under “{plain}”?",
    "To what does this value belong: {value}?",
    "Under “{plain}”, what has the value {value}?",
    "{Value} – what is this the value of?",
];

/// `must consult`: `{modal}` and `{verb}`.
pub(super) const MODAL_STATEMENTS: &[&str] = &[
    "~{Key} {attr} {value}.",
    "~What {key} {attr}: {value}.",
    "~{Key}: {attr} – {value}.",
    "~It holds for {key}: {attr} {value}.",
];
pub(super) const MODAL_QUESTIONS: &[&str] = &[
    "~What {modal} {key} {verb}?",
    "~Whom or what {modal} {key} {verb}?",
    "~Say what {key} {attr}.",
    "~{Key} {attr} what?",
    "~Do you know what {key} {attr}?",
    "~A colleague asks what {key} {attr}. What do you say?",
];
pub(super) const MODAL_REVERSE: &[&str] = &[
    "~Which {noun} {attr} {value}?",
    "~Who or what {attr} {value}?",
    "~Name the {noun} that {attr} {value}.",
    "~{Attr} {value}: which {noun} is meant?",
];
