use kernel::Pool;
use kernel::logits::{largest, log_sum_exp};
use model::{ExpertSet, Input, KvCache, Model};

use crate::Error;
use crate::logprobs::{divergence, for_each_row, on_pool, rows_at_once};

/// Tokens given to the decoder at once, so that activations stay small.
const CHUNK: usize = 512;

/// Log-probabilities of given tokens, in nats.
pub struct Scorer<'a> {
    pub model: &'a Model,
    pub pool: &'a Pool,
}

/// What two models say of the same token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beside {
    /// KL(own || other) of the distributions, nats.
    pub divergence: f32,
    /// The token's log-probability, nats.
    pub own: f32,
    pub other: f32,
    /// Whether both have the same likeliest token.
    pub same_best: bool,
}

impl Beside {
    fn of(a: &[f32], b: &[f32], target: u32) -> Self {
        let log_p = |logits: &[f32]| logits[target as usize] - log_sum_exp(logits);
        Beside {
            divergence: divergence(a, b),
            own: log_p(a),
            other: log_p(b),
            same_best: largest(a).map(|(id, _)| id) == largest(b).map(|(id, _)| id),
        }
    }
}

impl Scorer<'_> {
    /// The log-probability of each token of each continuation after `prefix`, nats, from raw
    /// logits. The prefix is computed once; the continuations run together on forks of its cache.
    ///
    /// # Errors
    /// An empty prefix, a token outside the vocabulary, or more tokens than the context holds.
    pub fn continuations(
        &self,
        prefix: &[u32],
        continuations: &[Vec<u32>],
        experts: ExpertSet,
    ) -> Result<Vec<Vec<f32>>, Error> {
        if prefix.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
        self.check(prefix.len() + longest, prefix)?;
        for continuation in continuations {
            self.check(continuation.len(), continuation)?;
        }
        let (cache, last_row) = self.read(prefix, experts);
        let mut scores = Vec::with_capacity(continuations.len());
        let mut rest = continuations;
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(batch_len(rest));
            scores.extend(self.batch(&cache, &last_row, batch, experts));
            rest = later;
        }
        Ok(scores)
    }

    /// The log-probability of each of `tokens[1..]` given those before it, nats.
    ///
    /// # Errors
    /// A token outside the vocabulary, or more tokens than the context holds.
    pub fn tokens(&self, tokens: &[u32], experts: ExpertSet) -> Result<Vec<f32>, Error> {
        self.check(tokens.len(), tokens)?;
        let Some((_, fed)) = tokens.split_last() else { return Ok(Vec::new()) };
        let mut cache = KvCache::new(self.model.config());
        let mut scores = Vec::with_capacity(fed.len());
        for (index, chunk) in fed.chunks(CHUNK).enumerate() {
            let rows = self.forward(chunk, &mut cache, experts);
            let targets = &tokens[index * CHUNK + 1..];
            scores.extend(self.log_probabilities(&rows, targets));
        }
        Ok(scores)
    }

    /// KL(p_a || p_b) of the next token's distribution at each position, nats: how far the model
    /// with the experts `a` is from the one with `b`.
    ///
    /// # Errors
    /// A token outside the vocabulary, or more tokens than the context holds.
    pub fn kl(&self, tokens: &[u32], a: ExpertSet, b: ExpertSet) -> Result<Vec<f32>, Error> {
        self.check(tokens.len(), tokens)?;
        let (hidden, vocab) = (self.model.config().hidden, self.model.config().vocab);
        let decoder = &self.model.decoder;
        let mut cache_a = KvCache::new(self.model.config());
        let mut cache_b = KvCache::new(self.model.config());
        let part = rows_at_once(vocab, 2) * hidden;
        let mut divergences = Vec::with_capacity(tokens.len());
        for chunk in tokens.chunks(CHUNK) {
            let rows_a = self.forward(chunk, &mut cache_a, a);
            let rows_b = self.forward(chunk, &mut cache_b, b);
            for (rows_a, rows_b) in rows_a.chunks(part).zip(rows_b.chunks(part)) {
                let logits_a = decoder.logits(self.pool, rows_a);
                let logits_b = decoder.logits(self.pool, rows_b);
                divergences.extend(on_pool(self.pool, rows_a.len() / hidden, |row| {
                    let range = row * vocab..(row + 1) * vocab;
                    divergence(&logits_a[range.clone()], &logits_b[range])
                }));
            }
        }
        Ok(divergences)
    }

    /// This model beside another of the same vocabulary, each with all of its experts: what both
    /// say of each of `tokens[1..]` given those before it.
    ///
    /// # Errors
    /// A token outside either vocabulary, or more tokens than either context holds.
    pub fn beside(&self, other: &Scorer, tokens: &[u32]) -> Result<Vec<Beside>, Error> {
        for scorer in [self, other] {
            scorer.check(tokens.len(), tokens)?;
        }
        let vocab = self.model.config().vocab;
        if other.model.config().vocab != vocab {
            return Err(Error::Vocabulary { own: vocab, other: other.model.config().vocab });
        }
        let Some((_, fed)) = tokens.split_last() else { return Ok(Vec::new()) };
        let mut caches = [self, other].map(|scorer| KvCache::new(scorer.model.config()));
        let part = rows_at_once(vocab, 2);
        let mut found = Vec::with_capacity(fed.len());
        for chunk in fed.chunks(CHUNK) {
            let [cache, other_cache] = &mut caches;
            let rows = [(self, cache), (other, other_cache)].map(|(scorer, cache)| {
                scorer.forward(chunk, cache, ExpertSet::all(scorer.model.decoder.experts()))
            });
            for start in (0..chunk.len()).step_by(part) {
                let count = part.min(chunk.len() - start);
                let [a, b] = [(self, &rows[0]), (other, &rows[1])].map(|(scorer, rows)| {
                    let hidden = scorer.model.config().hidden;
                    let rows = &rows[start * hidden..(start + count) * hidden];
                    scorer.model.decoder.logits(self.pool, rows)
                });
                let targets = &tokens[found.len() + 1..];
                found.extend(on_pool(self.pool, count, |row| {
                    let range = row * vocab..(row + 1) * vocab;
                    Beside::of(&a[range.clone()], &b[range], targets[row])
                }));
            }
        }
        Ok(found)
    }

    fn check(&self, length: usize, tokens: &[u32]) -> Result<(), Error> {
        let (context, vocab) = (self.model.config().context, self.model.config().vocab);
        if length > context {
            return Err(Error::Context { tokens: length, context, reserve: 0 });
        }
        match tokens.iter().find(|&&token| token as usize >= vocab) {
            Some(&token) => Err(Error::Token { token, vocab }),
            None => Ok(()),
        }
    }

    /// The cache after `prefix`, and the hidden row `[hidden]` of its last token.
    fn read(&self, prefix: &[u32], experts: ExpertSet) -> (KvCache, Vec<f32>) {
        let hidden = self.model.config().hidden;
        let mut cache = KvCache::new(self.model.config());
        let mut last = Vec::new();
        for chunk in prefix.chunks(CHUNK) {
            let rows = self.forward(chunk, &mut cache, experts);
            last = rows[rows.len() - hidden..].to_vec();
        }
        (cache, last)
    }

    fn batch(
        &self,
        cache: &KvCache,
        last_row: &[f32],
        continuations: &[Vec<u32>],
        experts: ExpertSet,
    ) -> Vec<Vec<f32>> {
        let hidden = self.model.config().hidden;
        // The last token is only predicted, never fed.
        let fed = |tokens: &[u32]| tokens.len().saturating_sub(1);
        let mut caches: Vec<KvCache> = continuations.iter().map(|_| cache.clone()).collect();
        let mut inputs: Vec<Input> = continuations
            .iter()
            .zip(&mut caches)
            .filter(|(tokens, _)| fed(tokens) > 0)
            .map(|(tokens, cache)| Input { tokens: &tokens[..fed(tokens)], cache, experts })
            .collect();
        let rows = if inputs.is_empty() {
            Vec::new()
        } else {
            self.model.decoder.forward(self.pool, &mut inputs).rows
        };
        // The rows that predict: the prefix's last before each continuation, then its own.
        let mut predicting = Vec::with_capacity(rows.len() + continuations.len() * hidden);
        let mut rest = rows.as_slice();
        for tokens in continuations.iter().filter(|tokens| !tokens.is_empty()) {
            let (own, later) = rest.split_at(fed(tokens) * hidden);
            predicting.extend_from_slice(last_row);
            predicting.extend_from_slice(own);
            rest = later;
        }
        let mut scores = self.log_probabilities(&predicting, &continuations.concat()).into_iter();
        continuations.iter().map(|tokens| scores.by_ref().take(tokens.len()).collect()).collect()
    }

    /// The log-probability of `targets[i]` under hidden row `i`; further targets are not used.
    fn log_probabilities(&self, rows: &[f32], targets: &[u32]) -> Vec<f32> {
        for_each_row(&self.model.decoder, self.pool, rows, |row, logits| {
            logits[targets[row] as usize] - log_sum_exp(logits)
        })
    }

    fn forward(&self, tokens: &[u32], cache: &mut KvCache, experts: ExpertSet) -> Vec<f32> {
        self.model.decoder.forward(self.pool, &mut [Input { tokens, cache, experts }]).rows
    }
}

/// How many of the continuations run at once: up to 16 forks and about [`CHUNK`] tokens.
fn batch_len(continuations: &[Vec<u32>]) -> usize {
    let mut tokens = 0;
    let fit = continuations.iter().take(16).take_while(|continuation| {
        tokens += continuation.len();
        tokens <= CHUNK
    });
    fit.count().max(1)
}
