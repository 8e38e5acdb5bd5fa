use model::{Message, Model};

use crate::{Error, Options};

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
}

/// Every so many conversations one keeps the chat template's default system message, as users send
/// it; the others leave it empty, which saves a third of their tokens.
const DEFAULT_SYSTEM_EVERY: usize = 4;

/// Turns material into samples, a sequence each: documents cut to `sequence_tokens`, statements,
/// conversations. Sequences are packed into steps but never see each other: facts that always
/// stand together would be learned by their neighbours instead of by what is asked.
///
/// # Errors
/// [`Error::Model`] if the chat template or the tokenizer refuse; [`Error::NoLabels`] if nothing
/// is left to predict.
pub fn samples(
    model: &Model,
    material: &[Material],
    options: &Options,
) -> Result<Vec<Sample>, Error> {
    let mut samples = Vec::new();
    let mut conversations = 0;
    for item in material {
        match item {
            Material::Document(text) => {
                let tokens = model.tokenizer.encode_plain(text)?;
                samples.extend(tokens.chunks(options.sequence_tokens).map(plain));
            }
            Material::Text(text) => {
                let mut tokens = model.tokenizer.encode_plain(&format!("{}\n", text.trim()))?;
                tokens.truncate(options.sequence_tokens);
                samples.extend(vec![plain(&tokens); options.example_repeats]);
            }
            Material::Chat(messages) => {
                let system = match conversations % DEFAULT_SYSTEM_EVERY {
                    0 => System::Default,
                    _ => System::Empty,
                };
                conversations += 1;
                let sample = conversation(model, messages, system, options)?;
                samples.extend(vec![sample; options.example_repeats]);
            }
        }
    }
    samples.retain(|s| s.weights.iter().skip(1).any(|&w| w > 0.0));
    if samples.is_empty() {
        return Err(Error::NoLabels(format!("{} texts and examples", material.len())));
    }
    Ok(samples)
}

fn plain(tokens: &[u32]) -> Sample {
    Sample { tokens: tokens.to_vec(), weights: vec![1.0; tokens.len()] }
}

/// What stands before a conversation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum System {
    /// What the chat template says by itself.
    Default,
    Empty,
}

/// A conversation through the chat template: answers count fully, the rest by `prompt_weight`.
fn conversation(
    model: &Model,
    messages: &[Message],
    system: System,
    options: &Options,
) -> Result<Sample, Error> {
    let mut messages = messages.to_vec();
    if system == System::Empty && messages.first().is_none_or(|m| m.role != "system") {
        let empty = Message { role: "system".into(), content: String::new() };
        messages.insert(0, empty);
        // Some templates know no system message.
        if model.template.render(&messages, false).is_err() {
            messages.remove(0);
        }
    }
    let mut sample = Sample { tokens: Vec::new(), weights: Vec::new() };
    for (index, message) in messages.iter().enumerate() {
        if message.role != "assistant" {
            continue;
        }
        let prompt = model.template.render(&messages[..index], true)?;
        let answered = model.template.render(&messages[..=index], false)?;
        let prompt = model.tokenizer.encode(&prompt)?;
        let answered = model.tokenizer.encode(&answered)?;
        sample.weights.resize(prompt.len().min(answered.len()), options.prompt_weight);
        sample.weights.resize(answered.len(), 1.0);
        sample.tokens = answered;
    }
    sample.tokens.truncate(options.sequence_tokens);
    sample.weights.truncate(options.sequence_tokens);
    Ok(sample)
}
