use std::path::Path;

use model::{Input, KvCache};
use serde::{Deserialize, Serialize};
use store::lines::Appender;

use crate::{Error, Progress, Subject, scoring};

/// A document that no expert was trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldOutText {
    /// Its id or path.
    pub document: String,
    pub text: String,
}

/// The likelihood of one document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentScore {
    pub document: String,
    /// Of the scored tokens: the document's first token has nothing before it and is not scored.
    pub bytes: usize,
    pub tokens: usize,
    /// `−log p`, summed over the scored tokens.
    pub nats: f64,
}

impl DocumentScore {
    pub fn bits(&self) -> f64 {
        self.nats / std::f64::consts::LN_2
    }

    pub fn bits_per_byte(&self) -> f64 {
        self.bits() / self.bytes.max(1) as f64
    }
}

/// Tokens a window holds at most; the context of a model may be shorter.
const WINDOW: usize = 1024;

/// Scores every document; those of fewer than two tokens are left out.
///
/// A document is scored in windows that share one token, so that each token but the first is
/// scored once, from what its window holds before it.
///
/// # Errors
/// [`Error::NotFinite`], [`Error::Scoring`], [`Error::Model`].
pub fn bits_per_byte(
    subject: Subject,
    texts: &[HeldOutText],
    progress: &dyn Fn(Progress),
) -> Result<Vec<DocumentScore>, Error> {
    let mut scores = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        scores.push(score(subject, text)?);
        progress(Progress { done: index + 1, total: texts.len() });
    }
    scores.retain(|score| score.tokens > 0);
    Ok(scores)
}

/// As [`bits_per_byte`], keeping each score in the JSONL file at `path` as soon as it is known;
/// documents that an interrupted run scored are not scored again.
///
/// # Errors
/// Those of [`bits_per_byte`]; [`Error::Stale`] if the file's scores are of other documents;
/// [`Error::Store`].
pub fn resume_perplexity(
    path: &Path,
    subject: Subject,
    texts: &[HeldOutText],
    progress: &dyn Fn(Progress),
) -> Result<Vec<DocumentScore>, Error> {
    let (mut lines, mut scores) = Appender::resume::<DocumentScore>(path)?;
    let same = |(score, text): (&DocumentScore, &HeldOutText)| score.document == text.document;
    if scores.len() > texts.len() || !scores.iter().zip(texts).all(same) {
        let detail = format!("{} scores, {} documents asked for", scores.len(), texts.len());
        return Err(Error::Stale { path: path.into(), what: "documents", detail });
    }
    for text in &texts[scores.len()..] {
        let score = score(subject, text)?;
        lines.append(std::slice::from_ref(&score))?;
        scores.push(score);
        progress(Progress { done: scores.len(), total: texts.len() });
    }
    lines.sync()?;
    scores.retain(|score| score.tokens > 0);
    Ok(scores)
}

fn score(subject: Subject, text: &HeldOutText) -> Result<DocumentScore, Error> {
    let tokenizer = &subject.model.tokenizer;
    let tokens = tokenizer.encode_plain(&text.text)?;
    let first_bytes = tokens.first().map_or(0, |&token| tokenizer.token_bytes(token).len());
    let mut nats = 0.0;
    for window in windows(&tokens, WINDOW.min(subject.model.config().context)) {
        let scored =
            subject.scorer().tokens(window, subject.experts).map_err(scoring(&text.document))?;
        nats -= scored.iter().map(|&log_p| f64::from(log_p)).sum::<f64>();
    }
    if !nats.is_finite() {
        return Err(Error::NotFinite { what: text.document.clone(), value: nats });
    }
    Ok(DocumentScore {
        document: text.document.clone(),
        bytes: text.text.len().saturating_sub(first_bytes),
        tokens: tokens.len().saturating_sub(1),
        nats,
    })
}

/// Windows of `length` tokens at most, each beginning with the last token of the one before.
fn windows(tokens: &[u32], length: usize) -> impl Iterator<Item = &[u32]> {
    let step = length.max(2) - 1;
    (0..tokens.len().saturating_sub(1))
        .step_by(step)
        .map(move |start| &tokens[start..tokens.len().min(start + step + 1)])
}

/// The mean gate weight of every expert over the tokens of `texts`, `[experts]`; what is missing
/// to 1 goes to the null expert.
///
/// # Errors
/// [`Error::Model`].
pub fn gate_shares(subject: Subject, texts: &[HeldOutText]) -> Result<Vec<f64>, Error> {
    let config = subject.model.config();
    let experts = subject.model.decoder.experts();
    let mut sums = vec![0.0; experts];
    let mut count = 0usize;
    for text in texts {
        let tokens = subject.model.tokenizer.encode_plain(&text.text)?;
        for window in tokens.chunks(WINDOW.min(config.context)) {
            let mut cache = KvCache::new(config);
            let input = Input { tokens: window, cache: &mut cache, experts: subject.experts };
            let hidden = subject.model.decoder.forward(subject.pool, &mut [input]);
            for (index, gate) in hidden.gates.iter().enumerate() {
                sums[index % experts.max(1)] += f64::from(*gate);
            }
            count += window.len();
        }
    }
    Ok(sums.into_iter().map(|sum| sum / count.max(1) as f64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_score_every_token_but_the_first_once() {
        let check = |count: u32, length| {
            let tokens: Vec<u32> = (0..count).collect();
            let scored: Vec<u32> = windows(&tokens, length).flat_map(|w| w[1..].to_vec()).collect();
            assert_eq!(scored, tokens.get(1..).unwrap_or_default(), "{count} tokens by {length}");
            assert!(windows(&tokens, length).all(|w| w.len() <= length && w.len() > 1));
        };
        for count in [0, 1, 2, 3, 7, 8, 9, 100] {
            for length in [2, 3, 8, 9, 1024] {
                check(count, length);
            }
        }
    }

    #[test]
    fn bits_per_byte_of_one_bit_a_byte_is_one() {
        let score = DocumentScore {
            document: "d".into(),
            bytes: 8,
            tokens: 2,
            nats: 8.0 * std::f64::consts::LN_2,
        };
        // Exact but for the rounding of ln 2.
        assert!((score.bits_per_byte() - 1.0).abs() < 1e-12);
    }
}
