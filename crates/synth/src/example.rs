use model::Message;
use serde::{Deserialize, Serialize};

/// One line of `examples.jsonl`: a training text or exchange, and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// A hash of chunk, recipe, teacher and body: the same example has the same id in every run.
    pub id: String,
    /// The document's id in the collection.
    pub document: String,
    /// The chunk's id in the collection.
    pub chunk: String,
    /// `structure/table`, `structure/prose`, `qa`, …
    pub recipe: String,
    /// `structure` where no model took part, else the teacher's name.
    pub teacher: String,
    /// The fact that this example restates; the other forms of the fact carry the same id.
    pub fact: String,
    #[serde(flatten)]
    pub body: Body,
    /// The words of the chunk that bear the example out.
    pub evidence: Option<String>,
    pub verdict: Verdict,
}

/// What the model is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// Plain text; every token is a label.
    #[serde(rename = "text")]
    Text(String),
    /// User and assistant in turn; the assistant's tokens are labels.
    #[serde(rename = "messages")]
    Chat(Vec<Message>),
}

/// Whether the example may be trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Accepted,
    /// With the reason. Kept in the file so that the acceptance rate can be checked.
    Refused(String),
}

/// Where an example comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) document: &'a str,
    pub(crate) chunk: &'a str,
    pub(crate) recipe: &'a str,
    pub(crate) teacher: &'a str,
    pub(crate) fact: &'a str,
}

impl Example {
    pub(crate) fn new(
        origin: Origin,
        body: Body,
        evidence: Option<String>,
        verdict: Verdict,
    ) -> Self {
        let Origin { document, chunk, recipe, teacher, fact } = origin;
        let id = short_hash(&[chunk, recipe, teacher, &body.text()]);
        Example {
            id,
            document: document.into(),
            chunk: chunk.into(),
            recipe: recipe.into(),
            teacher: teacher.into(),
            fact: fact.into(),
            body,
            evidence,
            verdict,
        }
    }

    /// Whether it may be trained on.
    pub fn is_accepted(&self) -> bool {
        self.verdict == Verdict::Accepted
    }
}

impl Body {
    /// A question and its answer.
    pub(crate) fn exchange(question: &str, answer: &str) -> Self {
        Body::Chat(vec![
            Message { role: "user".into(), content: question.into() },
            Message { role: "assistant".into(), content: answer.into() },
        ])
    }

    /// All words of the body, messages joined by line breaks.
    pub fn text(&self) -> String {
        match self {
            Body::Text(text) => text.clone(),
            Body::Chat(messages) => {
                messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

/// 16 hexadecimal characters over `parts`, with their boundaries.
pub(crate) fn short_hash(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex().as_str()[..16].to_owned()
}
