use model::{Message, Model};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

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

/// Short material is put together up to this many tokens, so that the chat template's fixed part
/// is paid for once.
const GROUP_TOKENS: usize = 256;

/// Turns material into samples: documents cut to `sequence_tokens`, statements and conversations
/// grouped in a seeded order.
///
/// # Errors
/// [`Error::Model`] if the chat template or the tokenizer refuse; [`Error::NoLabels`] if nothing
/// is left to predict.
pub fn samples(
    model: &Model,
    material: &[Material],
    options: &Options,
) -> Result<Vec<Sample>, Error> {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut samples = Vec::new();
    let (mut texts, mut chats) = (Vec::new(), Vec::new());
    for item in material {
        match item {
            Material::Document(text) => {
                let tokens = model.tokenizer.encode_plain(text)?;
                samples.extend(tokens.chunks(options.sequence_tokens).map(plain));
            }
            Material::Text(text) => texts.push(text),
            Material::Chat(messages) => chats.push(messages),
        }
    }
    for _ in 0..options.example_repeats {
        texts.shuffle(&mut rng);
        samples.extend(group_texts(model, &texts, options)?);
        chats.shuffle(&mut rng);
        samples.extend(group_chats(model, &chats, options)?);
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

fn group_limit(options: &Options) -> usize {
    GROUP_TOKENS.min(options.sequence_tokens)
}

/// Statements as lines of one text.
fn group_texts(model: &Model, texts: &[&String], options: &Options) -> Result<Vec<Sample>, Error> {
    let mut samples = Vec::new();
    let mut group: Vec<u32> = Vec::new();
    for text in texts {
        let tokens = model.tokenizer.encode_plain(&format!("{}\n", text.trim()))?;
        if !group.is_empty() && group.len() + tokens.len() > group_limit(options) {
            samples.push(plain(&std::mem::take(&mut group)));
        }
        group.extend(tokens.iter().take(options.sequence_tokens));
    }
    if !group.is_empty() {
        samples.push(plain(&group[..group.len().min(options.sequence_tokens)]));
    }
    Ok(samples)
}

/// Questions with answers as turns of one conversation.
fn group_chats(
    model: &Model,
    chats: &[&Vec<Message>],
    options: &Options,
) -> Result<Vec<Sample>, Error> {
    let mut samples = Vec::new();
    let mut group: Vec<Message> = Vec::new();
    let mut whole: Option<Sample> = None;
    for messages in chats {
        group.extend_from_slice(messages);
        let sample = conversation(model, &group, options)?;
        match &whole {
            Some(before) if sample.tokens.len() > group_limit(options) => {
                samples.push(before.clone());
                group = messages.to_vec();
                whole = Some(conversation(model, &group, options)?);
            }
            _ => whole = Some(sample),
        }
    }
    samples.extend(whole);
    Ok(samples)
}

/// A conversation through the chat template: answers count fully, the rest by `prompt_weight`.
fn conversation(model: &Model, messages: &[Message], options: &Options) -> Result<Sample, Error> {
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
