use std::sync::{Mutex, PoisonError};

use kernel::Pool;
use kernel::logits::log_sum_exp;
use model::Decoder;

/// Most bytes of logits held at once while scoring.
const LOGITS_BYTES: usize = 64 << 20;

/// The `count` likeliest tokens with their log-probabilities, likeliest first, ties by id.
pub(crate) fn top(logits: &[f32], normaliser: f32, count: usize) -> Vec<(u32, f32)> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let likelier =
        |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, likelier);
        ids.truncate(count);
    }
    ids.sort_unstable_by(likelier);
    ids.into_iter().map(|id| (id, logits[id as usize] - normaliser)).collect()
}

/// KL(a || b) of two rows of logits, nats.
pub(crate) fn divergence(a: &[f32], b: &[f32]) -> f32 {
    let (a_norm, b_norm) = (log_sum_exp(a), log_sum_exp(b));
    let sum: f64 = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| {
            let (log_a, log_b) = (a - a_norm, b - b_norm);
            f64::from(log_a.exp()) * f64::from(log_a - log_b)
        })
        .sum();
    // Rounding may leave a tiny negative sum where both are equal.
    sum.max(0.0) as f32
}

/// Rows of logits that may exist at once, when `copies` sets of them are held.
pub(crate) fn rows_at_once(vocab: usize, copies: usize) -> usize {
    (LOGITS_BYTES / (vocab * copies * size_of::<f32>()).max(1)).max(1)
}

/// Calls `work(row, logits)` for each of the hidden rows `[rows, hidden]`, on the pool, with no
/// more than [`LOGITS_BYTES`] of logits in memory; the answers come in row order.
pub(crate) fn for_each_row<T: Send>(
    decoder: &Decoder,
    pool: &Pool,
    hidden_rows: &[f32],
    work: impl Fn(usize, &[f32]) -> T + Sync,
) -> Vec<T> {
    let (hidden, vocab) = (decoder.config().hidden, decoder.config().vocab);
    let chunk = rows_at_once(vocab, 1);
    let mut answers = Vec::with_capacity(hidden_rows.len() / hidden);
    for (index, part) in hidden_rows.chunks(chunk * hidden).enumerate() {
        let logits = decoder.logits(pool, part);
        answers.extend(on_pool(pool, part.len() / hidden, |row| {
            work(index * chunk + row, &logits[row * vocab..][..vocab])
        }));
    }
    answers
}

/// `work(0), work(1), …` computed on the pool, in order.
pub(crate) fn on_pool<T: Send>(
    pool: &Pool,
    tasks: usize,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let slots: Vec<Mutex<Option<T>>> = (0..tasks).map(|_| Mutex::new(None)).collect();
    pool.run(tasks, &|task| {
        let answer = work(task);
        *slots[task].lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    });
    slots
        .into_iter()
        .map(|slot| {
            let answer = slot.into_inner().unwrap_or_else(PoisonError::into_inner);
            answer.expect("the pool runs every task")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_orders_by_likelihood_then_id() {
        let logits = [1.0, 3.0, 3.0, -1.0];
        let ids: Vec<u32> = top(&logits, 0.0, 3).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [1, 2, 0]);
        assert_eq!(top(&logits, 0.0, 9).len(), 4);
        assert!(top(&logits, 0.0, 0).is_empty());
    }

    #[test]
    fn divergence_is_zero_only_for_equal_distributions() {
        assert_eq!(divergence(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
        // The same distribution, logits shifted by a constant.
        assert!(divergence(&[1.0, 2.0], &[11.0, 12.0]) < 1e-6);
        // p = (1/2, 1/2), q = (1/4, 3/4).
        let kl = divergence(&[0.0, 0.0], &[0.25f32.ln(), 0.75f32.ln()]);
        assert!((kl - 0.143_841).abs() < 1e-5, "{kl}");
    }
}
