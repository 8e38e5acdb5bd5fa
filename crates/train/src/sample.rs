use model::{ChatTemplate, Message, Tokenizer};

use crate::Error;

/// What an expert learns from.
#[derive(Clone, Debug, PartialEq)]
pub enum Material {
    /// A passage of a document, in reading order.
    Document(String),
    /// A fact restated.
    Text(String),
    /// A question with its answer.
    Chat(Vec<Message>),
}

/// One sequence to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub tokens: Vec<u32>,
    /// The weight of each token's prediction in the loss; the first is never predicted.
    pub weights: Vec<f32>,
    /// Whether what the base expects counts beside what stands there, by `document_kl`.
    pub softened: bool,
    /// Times it is gone through.
    pub passes: usize,
}

/// Every so many conversations one begins as the chat template has it, with its default system
/// message; the others are turns alone, which saves half of their tokens.
const WHOLE_EVERY: usize = 8;

/// How material is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// The longest sequence; longer documents are cut.
    pub sequence_tokens: usize,
    /// Times documents and statements are gone through, …
    pub passes: usize,
    /// … and questions.
    pub question_passes: usize,
    /// The weight of a question's tokens in the loss; an answer's have 1.
    pub prompt_weight: f32,
    /// Whether documents are [softened](Sample::softened).
    pub softened: bool,
}

/// What turns text into tokens.
#[derive(Clone, Copy)]
pub struct Language<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: &'a ChatTemplate,
}

/// Turns material into samples, a sequence each: documents cut to `sequence_tokens`, statements,
/// conversations. Sequences are packed into steps but never see each other: facts that always
/// stand together would be learned by their neighbours instead of by what is asked.
///
/// # Errors
/// [`Error::Model`] if the chat template or the tokenizer refuse; [`Error::NoLabels`] if nothing
/// is left to predict.
pub fn samples(
    language: Language,
    material: &[Material],
    reading: &Reading,
) -> Result<Vec<Sample>, Error> {
    let mut samples = Vec::new();
    let mut conversations = 0;
    for item in material {
        match item {
            Material::Document(text) => {
                let tokens = language.tokenizer.encode_plain(text)?;
                samples.extend(tokens.chunks(reading.sequence_tokens).map(|tokens| Sample {
                    softened: reading.softened,
                    ..plain(tokens, reading.passes)
                }));
            }
            Material::Text(text) => {
                let mut tokens = language.tokenizer.encode_plain(&format!("{}\n", text.trim()))?;
                tokens.truncate(reading.sequence_tokens);
                samples.push(plain(&tokens, reading.passes));
            }
            Material::Chat(messages) => {
                let opening = match conversations % WHOLE_EVERY {
                    0 => Opening::Whole,
                    _ => Opening::Turns,
                };
                conversations += 1;
                samples.push(conversation(language, messages, opening, reading)?);
            }
        }
    }
    samples.retain(|s| s.weights.iter().skip(1).any(|&w| w > 0.0));
    if samples.is_empty() {
        return Err(Error::NoLabels(format!("{} texts and examples", material.len())));
    }
    Ok(samples)
}

fn plain(tokens: &[u32], passes: usize) -> Sample {
    Sample { tokens: tokens.to_vec(), weights: vec![1.0; tokens.len()], softened: false, passes }
}

/// How a conversation begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// As the chat template has it.
    Whole,
    /// Without what stands before the first turn.
    Turns,
}

/// A conversation through the chat template: answers count fully, the rest by `prompt_weight`.
fn conversation(
    language: Language,
    messages: &[Message],
    opening: Opening,
    reading: &Reading,
) -> Result<Sample, Error> {
    let tokens = |messages: &[Message], prompt: bool| {
        let text = match opening {
            Opening::Whole => language.template.render(messages, prompt)?,
            Opening::Turns => language.template.render_turns(messages, prompt)?,
        };
        language.tokenizer.encode(&text)
    };
    let mut sample = Sample {
        tokens: Vec::new(),
        weights: Vec::new(),
        softened: false,
        passes: reading.question_passes,
    };
    for (index, message) in messages.iter().enumerate() {
        if message.role != "assistant" {
            continue;
        }
        let prompt = tokens(&messages[..index], true)?;
        let answered = tokens(&messages[..=index], false)?;
        sample.weights.resize(prompt.len().min(answered.len()), reading.prompt_weight);
        sample.weights.resize(answered.len(), 1.0);
        sample.tokens = answered;
    }
    sample.tokens.truncate(reading.sequence_tokens);
    sample.weights.truncate(reading.sequence_tokens);
    Ok(sample)
}
