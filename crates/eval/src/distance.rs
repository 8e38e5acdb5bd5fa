use model::Model;

use crate::{Error, Estimate, Progress, Share, ratio, scoring};

/// How far a model is from the one it was made of, on a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    /// Scored tokens.
    pub tokens: usize,
    /// KL(original || model), nats per token; each window a cluster.
    pub divergence: Estimate,
    /// The divergence that 99 of 100 tokens stay below.
    pub divergence_p99: f32,
    /// `exp(−mean log p)`, by token.
    pub original_perplexity: f64,
    pub perplexity: f64,
    /// Share of the tokens at which both have the same likeliest token.
    pub same_best: f64,
}

/// Tokens that are scored in one piece; the context of a model may be shorter.
const WINDOW: usize = 512;

/// Compares two models of one vocabulary on a text, in windows without overlap. Where the chat
/// template begins with the token that begins texts, each window does.
///
/// # Errors
/// [`Error::Scoring`] if the text has fewer than two tokens, or the models do not go together.
pub fn distance(
    original: &Model,
    model: &Model,
    pool: &kernel::Pool,
    text: &str,
    progress: &dyn Fn(Progress),
) -> Result<Distance, Error> {
    let tokens = original.tokenizer.encode_plain(text)?;
    let begin = beginning(original);
    let window = WINDOW.min(original.config().context).max(2) - begin.is_some() as usize;
    let scorers = [original, model].map(|model| engine::Scorer { model, pool });
    let (mut shares, mut all) = (Vec::new(), Vec::new());
    for (index, piece) in tokens.chunks(window).enumerate() {
        let piece: Vec<u32> = begin.into_iter().chain(piece.iter().copied()).collect();
        let found = scorers[0].beside(&scorers[1], &piece).map_err(scoring("the text"))?;
        let sum = found.iter().map(|token| f64::from(token.divergence)).sum();
        shares.push(Share { sum, weight: found.len() as f64 });
        all.extend(found);
        progress(Progress { done: index + 1, total: tokens.len().div_ceil(window) });
    }
    if all.is_empty() {
        return Err(scoring("a text of fewer than two tokens")(engine::Error::EmptyPrompt));
    }
    let count = all.len() as f64;
    let perplexity = |log_p: fn(&engine::Beside) -> f32| {
        (-all.iter().map(|token| f64::from(log_p(token))).sum::<f64>() / count).exp()
    };
    let mut divergences: Vec<f32> = all.iter().map(|token| token.divergence).collect();
    divergences.sort_by(f32::total_cmp);
    Ok(Distance {
        tokens: all.len(),
        divergence: ratio(&shares),
        divergence_p99: divergences[(all.len() * 99 / 100).min(all.len() - 1)],
        original_perplexity: perplexity(|token| token.own),
        perplexity: perplexity(|token| token.other),
        same_best: all.iter().filter(|token| token.same_best).count() as f64 / count,
    })
}

/// The token that begins each text, for models that were trained so.
pub fn beginning(model: &Model) -> Option<u32> {
    model.config().bos.filter(|_| model.template.source().contains("bos_token"))
}
