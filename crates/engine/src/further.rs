//! Drafts by the model's own block for the token after the next.
//!
//! **Source**: DeepSeek-AI 2024, arXiv 2412.19437, section 2.2; drafts are accepted as in
//! [`crate::lookup`], so a draft never changes what is written.

use kernel::Pool;
use model::{Config, Decoder, ExpertSet, Input, KvCache, KvFormat};

/// Tokens whose hidden rows wait for the block at most: of a longer prompt it reads the end.
const WAITING: usize = 256;
/// The share of drafted tokens that must have been right lately for drafts to be worth their time, …
const WORTH: f32 = 0.5;
/// … and the steps after which one is tried nevertheless.
const TRIED_AGAIN: usize = 32;
/// How fast what was right long ago is forgotten.
const MEMORY: f32 = 1.0 / 16.0;

/// What one sequence keeps for its drafts.
pub(crate) struct Further {
    /// Tokens of a draft, at most.
    most: usize,
    width: usize,
    cache: KvCache,
    /// `[waiting, hidden]`: rows of tokens that the block has not read yet.
    rows: Vec<f32>,
    /// The token behind the last of the rows.
    end: usize,
    /// The share of drafted tokens that were right lately.
    right: f32,
    /// Steps without a draft.
    idle: usize,
}

impl Further {
    /// None where nothing is to be drafted so.
    pub(crate) fn new(config: &Config, format: KvFormat, most: usize) -> Option<Self> {
        (config.mtp && most > 0).then(|| Further {
            most,
            width: config.hidden,
            cache: KvCache::of_mtp(config, format),
            rows: Vec::new(),
            end: 0,
            right: 1.0,
            idle: 0,
        })
    }

    /// Takes in the hidden rows `[rows, hidden]` of tokens from `first` on.
    pub(crate) fn take(&mut self, first: usize, rows: &[f32]) {
        if first != self.end {
            // Tokens between were read by another request.
            self.forget();
        }
        self.rows.extend_from_slice(rows);
        self.end = first + rows.len() / self.width;
        if self.rows.len() > WAITING * self.width {
            let kept = self.rows.split_off(self.rows.len() - WAITING * self.width);
            self.forget();
            self.rows = kept;
        }
    }

    fn forget(&mut self) {
        self.rows.clear();
        self.cache.truncate(0);
    }

    /// Whether the next step should have a draft.
    pub(crate) fn is_worth(&mut self) -> bool {
        self.idle += 1;
        !self.rows.is_empty() && (self.right >= WORTH || self.idle >= TRIED_AGAIN)
    }

    /// Takes in how many of a draft's tokens were right.
    pub(crate) fn learn(&mut self, drafted: usize, right: usize) {
        self.right += MEMORY * (right as f32 / drafted as f32 - self.right);
    }
}

/// A sequence that wants a draft.
pub(crate) struct Wanting<'a> {
    pub(crate) further: &'a mut Further,
    /// All tokens so far; of the last one there is no hidden row yet.
    pub(crate) tokens: &'a [u32],
    /// Is empty, and gets `room` tokens at most.
    pub(crate) draft: &'a mut Vec<u32>,
    pub(crate) room: usize,
}

impl Wanting<'_> {
    fn goes_on(&self) -> bool {
        self.draft.len() < self.room.min(self.further.most)
    }

    /// The last `count` tokens, for the block to read; of the draft, if it has begun.
    fn input(&mut self, count: usize) -> Input<'_> {
        let tokens = if self.draft.is_empty() { self.tokens } else { self.draft.as_slice() };
        let tokens = &tokens[tokens.len() - count..];
        Input { tokens, cache: &mut self.further.cache, experts: ExpertSet::NONE }
    }
}

/// Gives each of them a draft.
pub(crate) fn draft(decoder: &Decoder, pool: &Pool, mut all: Vec<Wanting>) {
    let (width, vocab) = (decoder.config().hidden, decoder.config().vocab);
    let mut hidden = Vec::new();
    // With the tokens that the block reads next.
    let mut going: Vec<(&mut Wanting, usize)> = Vec::new();
    for one in &mut all {
        one.further.idle = 0;
        let waiting = one.further.rows.len() / width;
        hidden.append(&mut one.further.rows);
        going.push((one, waiting));
    }
    while !going.is_empty() {
        let mut inputs: Vec<Input> =
            going.iter_mut().map(|(one, count)| one.input(*count)).collect();
        let rows = decoder.further(pool, &mut inputs, &hidden);
        let mut end = 0;
        let last = going.iter().flat_map(|(_, count)| {
            end += count;
            &rows[(end - 1) * width..end * width]
        });
        let last: Vec<f32> = last.copied().collect();
        let logits = decoder.logits(pool, &last);
        let each = logits.chunks_exact(vocab).zip(last.chunks_exact(width));
        let mut still = Vec::new();
        hidden.clear();
        for ((one, _), (logits, row)) in going.into_iter().zip(each) {
            one.draft.push(likeliest(logits));
            if one.goes_on() {
                // Its own last row, in place of the model's.
                hidden.extend_from_slice(row);
                still.push((one, 1));
            }
        }
        going = still;
    }
    // What was drafted is read again with its own hidden rows, where it was right. The block has not
    // read the last token.
    for one in &mut all {
        let cache = &mut one.further.cache;
        cache.truncate(cache.len() - (one.draft.len() - 1));
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|(a, x), (b, y)| x.total_cmp(y).then(b.cmp(a)));
    best.map_or(0, |(token, _)| token as u32)
}
