//! The arithmetic of a step, to hold its speed against the peak of multiply-adds.

use model::{Config, TensorInfo};

/// Multiply-adds of both passes, each counted as two: all products, attention where it sees. What is
/// computed twice for want of memory is counted once.
pub struct Flops {
    /// Of a token, but for attention.
    token: f64,
    /// Of a place that a token sees.
    seen: f64,
}

impl Flops {
    pub fn of(config: &Config) -> Self {
        let layers = config.layers + usize::from(config.mtp);
        // Of attention two products forward, five backward.
        let seen = 14.0 * (layers * config.heads * config.head_dim) as f64;
        Flops { token: 6.0 * multiplied(config), seen }
    }

    /// Those of a step on sequences of these lengths.
    pub fn step(&self, lengths: impl IntoIterator<Item = usize>) -> f64 {
        let lengths = lengths.into_iter();
        let each = lengths.map(|n| self.token * n as f64 + self.seen * (n * (n + 1) / 2) as f64);
        each.sum()
    }
}

/// Weights that a token is multiplied with: of routed experts those that it goes to.
fn multiplied(config: &Config) -> f64 {
    let share = config.routing.map_or(1.0, |r| r.top_k as f64 / r.experts as f64);
    let weight = |info: &TensorInfo| match info.shape.len() {
        1 => 0.0,
        // Looked up, unless the output layer multiplies with it.
        2 if info.name.contains("embed_tokens") && !config.tied_embeddings => 0.0,
        2 if !info.name.contains(".experts.") => info.len() as f64,
        _ => info.len() as f64 * share,
    };
    let all: f64 = config.tensors().iter().map(weight).sum();
    // The block for a further token has the output layer of the others.
    let again = if config.mtp { config.vocab * config.hidden } else { 0 };
    all + again as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Options;

    #[test]
    fn only_what_a_token_goes_through_counts() {
        let options = Options { hidden: 8, layers: 2, heads: 2, kv_heads: 1, ..Options::default() };
        let options = Options { width: 6, experts: 4, top_k: 3, expert_width: 2, ..options };
        let routed = options.config(50, None, vec![]);
        let attention = 8 * 8 * 2 + 8 * 4 * 2;
        let common = attention + 3 * 6 * 8;
        let expected = 2 * (common + 4 * 8 + 3 * 3 * 2 * 8) + 50 * 8;
        assert_eq!(multiplied(&routed), expected as f64);
        let dense = Options { experts: 0, ..options.clone() }.config(50, None, vec![]);
        assert_eq!(multiplied(&dense), (2 * common + 50 * 8) as f64);
        let untied = model::Config { tied_embeddings: false, ..dense };
        assert_eq!(multiplied(&untied), (2 * common + 50 * 8) as f64);
        // Two layers, two heads of four; two tokens see three places, one sees one.
        let scores = (14 * 2 * 2 * 4 * 4) as f64;
        assert_eq!(Flops::of(&untied).step([2, 1]), 6.0 * 3.0 * multiplied(&untied) + scores);
        let further = Options { mtp: 0.3, ..options }.config(50, None, vec![]);
        let layer = common + 4 * 8 + 3 * 3 * 2 * 8;
        assert_eq!(multiplied(&further), (expected + 2 * 8 * 8 + layer + 50 * 8) as f64);
    }
}
