use std::path::Path;

use model::{ExpertSet, Input, KvCache, Message, Model};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use store::lines::Appender;

use crate::{Error, Estimate, Progress, Share, Subject, ratio, scoring};

/// A text the base wrote itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseText {
    pub prompt: String,
    pub seed: u64,
    /// Prompt in the chat template, then what the base wrote.
    pub tokens: Vec<u32>,
    pub prompt_tokens: usize,
    pub text: String,
}

/// How much the base writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writing {
    pub texts: usize,
    /// Of each text, without its prompt.
    pub max_tokens: usize,
    pub seed: u64,
}

impl Default for Writing {
    fn default() -> Self {
        Writing { texts: GENERAL_PROMPTS.len(), max_tokens: 128, seed: 0 }
    }
}

/// How far a model with experts is from its base where the base is at home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forgetting {
    pub texts: usize,
    pub tokens: usize,
    /// KL(base ‖ model), nats per token; each text a cluster.
    pub divergence: Estimate,
}

/// Everyday topics, none of a company's own: what a department's expert must leave alone.
const GENERAL_PROMPTS: [&str; 24] = [
    "Give me a simple recipe for a vegetable soup.",
    "Why is the sky blue?",
    "Write a short poem about autumn.",
    "What should I pack for a weekend in the mountains?",
    "Explain to a child how rain is made.",
    "Tell me a short story about a fox and a river.",
    "What is the capital of France, and what is it known for?",
    "How can I sleep better?",
    "Write a friendly letter to a neighbour about a lost cat.",
    "What is 17 times 6? Show the steps.",
    "Who was Marie Curie?",
    "Translate into Spanish: Good morning, how are you?",
    "What are the advantages of riding a bicycle to work?",
    "Write a Python function that reverses a string.",
    "How does a library lend its books?",
    "Name five birds and say where they live.",
    "What is the difference between weather and climate?",
    "Suggest three films for a family evening.",
    "How do I begin to learn the guitar?",
    "Summarise the story of Cinderella in three sentences.",
    "What do plants need in order to grow?",
    "Write a polite reply that declines an invitation.",
    "Why do we have leap years?",
    "What makes a good friend?",
];

/// Sequences written in one batch: enough to read each weight once for many tokens.
const BATCH: usize = 8;

/// Lets the base write on general prompts, at temperature 1, and keeps the texts in the JSONL file
/// at `path`; texts that an interrupted run left there stay.
///
/// The texts depend on the base, `writing` and nothing else, so a caller can keep the file for all
/// models joined on that base.
///
/// # Errors
/// [`Error::Writing`] if the model's context is too short; [`Error::Stale`] if the file's texts
/// are of another setting; [`Error::Store`], [`Error::Model`], [`Error::NotFinite`].
pub fn write_base_texts(
    path: &Path,
    subject: Subject,
    writing: Writing,
    progress: &dyn Fn(Progress),
) -> Result<Vec<BaseText>, Error> {
    let base = subject.base();
    let (mut lines, mut texts) = Appender::resume::<BaseText>(path)?;
    let stale = |detail: String| Error::Stale { path: path.into(), what: "texts", detail };
    if texts.len() > writing.texts {
        return Err(stale(format!("{} texts where {} are asked for", texts.len(), writing.texts)));
    }
    for (index, text) in texts.iter().enumerate() {
        if text.prompt != prompt(index) || text.seed != writing.seed + index as u64 {
            return Err(stale(format!("text {index} has seed {} or another prompt", text.seed)));
        }
    }
    while texts.len() < writing.texts {
        let begun: Vec<BaseText> = (texts.len()..writing.texts.min(texts.len() + BATCH))
            .map(|index| begin(base.model, index, writing))
            .collect::<Result<_, _>>()?;
        let written = write(base, begun, writing.max_tokens)?;
        lines.append(&written)?;
        texts.extend(written);
        progress(Progress { done: texts.len(), total: writing.texts });
    }
    lines.sync()?;
    Ok(texts)
}

/// Reads texts that [`write_base_texts`] kept.
///
/// # Errors
/// [`Error::Store`] naming the line that is none.
pub fn read_base_texts(path: &Path) -> Result<Vec<BaseText>, Error> {
    Ok(store::lines::read(path)?)
}

fn prompt(index: usize) -> &'static str {
    GENERAL_PROMPTS[index % GENERAL_PROMPTS.len()]
}

fn begin(model: &Model, index: usize, writing: Writing) -> Result<BaseText, Error> {
    let prompt = prompt(index);
    let message = Message { role: "user".into(), content: prompt.into() };
    let tokens = model.tokenizer.encode(&model.template.render(&[message], true)?)?;
    let needed = tokens.len() + writing.max_tokens;
    let limit = model.config().context;
    if needed > limit || writing.max_tokens == 0 {
        let reason = format!(
            "a prompt of {} and {} new tokens must be more than the prompt and at most the context of {limit}",
            tokens.len(),
            writing.max_tokens
        );
        return Err(Error::Writing { model: model.name.clone(), reason });
    }
    Ok(BaseText {
        prompt: prompt.into(),
        seed: writing.seed + index as u64,
        prompt_tokens: tokens.len(),
        tokens,
        text: String::new(),
    })
}

/// Writes on the begun texts together, a token each at a time, until their ends.
fn write(
    base: Subject,
    mut texts: Vec<BaseText>,
    max_tokens: usize,
) -> Result<Vec<BaseText>, Error> {
    let model = base.model;
    let config = model.config();
    let mut caches: Vec<KvCache> = texts.iter().map(|_| KvCache::new(config)).collect();
    let mut random: Vec<ChaCha8Rng> =
        texts.iter().map(|t| ChaCha8Rng::seed_from_u64(t.seed)).collect();
    let mut open: Vec<usize> = (0..texts.len()).collect();
    while !open.is_empty() {
        let hidden = {
            let mut inputs: Vec<Input> = Vec::with_capacity(open.len());
            for (index, cache) in caches.iter_mut().enumerate() {
                if open.contains(&index) {
                    let tokens = &texts[index].tokens[cache.len()..];
                    inputs.push(Input { tokens, cache, experts: ExpertSet::NONE });
                }
            }
            let counts: Vec<usize> = inputs.iter().map(|input| input.tokens.len()).collect();
            let hidden = model.decoder.forward(base.pool, &mut inputs);
            last_rows(&hidden.rows, &counts, config.hidden)
        };
        let logits = model.decoder.logits(base.pool, &hidden);
        let mut still_open = Vec::with_capacity(open.len());
        for (row, &index) in logits.chunks_exact(config.vocab).zip(&open) {
            let token = sample(row, random[index].random()).ok_or_else(|| Error::NotFinite {
                what: texts[index].prompt.clone(),
                value: f64::NAN,
            })?;
            let text = &mut texts[index];
            text.tokens.push(token);
            let written = text.tokens.len() - text.prompt_tokens;
            if written < max_tokens && !config.eos.contains(&token) {
                still_open.push(index);
            }
        }
        open = still_open;
    }
    for text in &mut texts {
        text.text = model.tokenizer.decode(&text.tokens[text.prompt_tokens..]);
    }
    Ok(texts)
}

/// Of each sequence's rows the last, `[sequences, hidden]`.
fn last_rows(rows: &[f32], counts: &[usize], hidden: usize) -> Vec<f32> {
    let mut last = Vec::with_capacity(counts.len() * hidden);
    let mut end = 0;
    for count in counts {
        end += count;
        last.extend_from_slice(&rows[(end - 1) * hidden..end * hidden]);
    }
    last
}

/// The token at `point` (0 to 1) of the distribution that `logits` give at temperature 1; None if
/// they are not finite.
fn sample(logits: &[f32], point: f64) -> Option<u32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - highest).exp()).sum();
    if !total.is_finite() {
        return None;
    }
    let mut remaining = point * total;
    let mut chosen = 0;
    for (token, &logit) in logits.iter().enumerate() {
        let weight = f64::from(logit - highest).exp();
        if weight > 0.0 {
            chosen = token as u32;
            if remaining < weight {
                break;
            }
            remaining -= weight;
        }
    }
    Some(chosen)
}

/// The divergence of a model from its base on what the base wrote, prompts left out: of the same model
/// with experts, or of another one, without.
///
/// # Errors
/// [`Error::NotFinite`]; [`Error::Scoring`], for texts of another model for instance.
pub fn forgetting(
    [base, subject]: [Subject; 2],
    texts: &[BaseText],
    progress: &dyn Fn(Progress),
) -> Result<Forgetting, Error> {
    let mut shares = Vec::with_capacity(texts.len());
    let mut tokens = 0;
    for (index, text) in texts.iter().enumerate() {
        let divergence = match std::ptr::eq(base.model, subject.model) {
            true => base.scorer().kl(&text.tokens, base.experts, subject.experts),
            false => {
                let beside = base.scorer().beside(&subject.scorer(), &text.tokens);
                beside.map(|tokens| tokens.into_iter().map(|token| token.divergence).collect())
            }
        };
        let divergence = divergence.map_err(scoring(&text.prompt))?;
        // Position t tells what token t + 1 will be: the prompt's last position predicts the first
        // token of the text, and nothing followed the text's last.
        let written = text.tokens.len() - text.prompt_tokens;
        let positions = divergence.iter().skip(text.prompt_tokens.saturating_sub(1)).take(written);
        let sum: f64 = positions.map(|&nats| f64::from(nats)).sum();
        if !sum.is_finite() {
            return Err(Error::NotFinite { what: text.prompt.clone(), value: sum });
        }
        shares.push(Share { sum, weight: written as f64 });
        tokens += written;
        progress(Progress { done: index + 1, total: texts.len() });
    }
    Ok(Forgetting { texts: texts.len(), tokens, divergence: ratio(&shares) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_follow_the_distribution_and_never_take_the_impossible() {
        let logits = [0.25f32.ln(), f32::NEG_INFINITY, 0.75f32.ln()];
        let check =
            |point, expected| assert_eq!(sample(&logits, point), Some(expected), "at {point}");
        check(0.0, 0);
        check(0.24, 0);
        check(0.26, 2);
        check(0.999_999_999, 2);
        assert_eq!(sample(&[f32::NAN, 0.0], 0.5), None);
        assert_eq!(sample(&[f32::INFINITY, 0.0], 0.5), None);
    }

    #[test]
    fn the_last_row_of_each_sequence_is_kept() {
        let rows: Vec<f32> = (0..12).map(|i| i as f32).collect();
        assert_eq!(last_rows(&rows, &[1, 3, 2], 2), [0.0, 1.0, 6.0, 7.0, 10.0, 11.0]);
    }

    #[test]
    fn prompts_are_all_different() {
        let mut prompts = GENERAL_PROMPTS.to_vec();
        prompts.sort_unstable();
        prompts.dedup();
        assert_eq!(prompts.len(), GENERAL_PROMPTS.len());
    }
}
