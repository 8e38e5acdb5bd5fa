//! A look at the rows that the weights are multiplied with.

use std::cell::RefCell;

use kernel::Pool;

use super::layer::Pass;
use super::{Decoder, Input};
use crate::{Family, Importance};

/// Gathers what the passes of a decoder of this family show.
pub(super) struct Watcher {
    family: Family,
    found: RefCell<Importance>,
}

/// Whose input the rows are.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Attention,
    AttentionOut,
    FeedForward,
    Down,
    /// Of department expert `.0[0]` of `.0[1]`.
    Expert([usize; 2]),
    ExpertDown([usize; 2]),
}

impl Place {
    /// The matrices, as GGUF files name them.
    fn parts(self, family: Family) -> &'static [&'static str] {
        let shared = family == Family::GraniteMoeShared;
        match self {
            Place::Attention => &["attn_q", "attn_k", "attn_v"],
            Place::AttentionOut => &["attn_output"],
            Place::FeedForward if shared => &["ffn_gate_shexp", "ffn_up_shexp"],
            Place::FeedForward => &["ffn_gate", "ffn_up"],
            Place::Down if shared => &["ffn_down_shexp"],
            Place::Down => &["ffn_down"],
            Place::Expert(_) => &["ffn_gate_exps", "ffn_up_exps"],
            Place::ExpertDown(_) => &["ffn_down_exps"],
        }
    }
}

impl Pass<'_, '_> {
    /// Shows the watcher, if there is one, rows `[_, cols]` that are about to be multiplied.
    pub(super) fn see(&self, layer: usize, place: Place, rows: &[f32], cols: usize) {
        let Some(watcher) = self.watcher else { return };
        let part = match place {
            Place::Expert(part) | Place::ExpertDown(part) => part,
            _ => [0, 1],
        };
        let mut found = watcher.found.borrow_mut();
        for name in place.parts(watcher.family) {
            found.add(format!("blk.{layer}.{name}.weight"), rows, cols, part);
        }
    }
}

impl Decoder {
    /// As [`Decoder::forward`], and adds what the weights were multiplied with to `found`. Of
    /// experts of the model's own nothing is seen.
    pub(crate) fn observe(
        &self,
        pool: &Pool,
        inputs: &mut [Input],
        found: Importance,
    ) -> Importance {
        let watcher = Watcher { family: self.config.family, found: RefCell::new(found) };
        let hidden = self.run(pool, inputs, Some(&watcher));
        let mut found = watcher.found.into_inner();
        let head = if self.config.tied_embeddings { "token_embd" } else { "output" };
        found.add(format!("{head}.weight"), &hidden.rows, self.config.hidden, [0, 1]);
        found
    }
}
