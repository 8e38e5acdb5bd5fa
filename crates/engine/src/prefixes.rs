use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use model::{ExpertSet, Page};

/// Pages of prompts that were read, to be used again by prompts that begin alike.
///
/// A page is found by its tokens, by all that stand before them, and by the experts that its
/// request was permitted: keys and values computed with one set of experts never serve another.
#[derive(Default)]
pub(crate) struct Prefixes {
    pages: HashMap<Place, Entry>,
    /// Pages there have been: the next one's number.
    numbered: u64,
    /// Counts uses.
    clock: u64,
}

/// Part of a prompt that was read.
#[derive(Clone)]
pub(crate) struct ReadPage {
    pub(crate) page: Arc<Page>,
    /// `[experts]`: the gates, summed over the page's tokens.
    pub(crate) gates: Arc<[f32]>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    before: Before,
    tokens: [u32; Page::TOKENS],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Before {
    Nothing(ExpertSet),
    Page(u64),
}

struct Entry {
    read: ReadPage,
    id: u64,
    /// When the page was last used. Of pages used together, the later go first.
    used: (u64, Reverse<usize>),
}

impl Prefixes {
    /// Pages held.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// The pages with which the prompt begins, as far as they are there.
    pub(crate) fn find(&mut self, experts: ExpertSet, prompt: &[u32]) -> Vec<ReadPage> {
        self.clock += 1;
        let mut before = Before::Nothing(experts);
        let mut found = Vec::new();
        for &tokens in prompt.as_chunks().0 {
            let Some(entry) = self.pages.get_mut(&Place { before, tokens }) else { break };
            entry.used = (self.clock, Reverse(found.len()));
            before = Before::Page(entry.id);
            found.push(entry.read.clone());
        }
        found
    }

    /// Keeps the pages of a prompt's beginning. Where an equal page is there already, it takes the
    /// place of that in `pages`.
    pub(crate) fn keep(&mut self, experts: ExpertSet, prompt: &[u32], pages: &mut [ReadPage]) {
        self.clock += 1;
        let mut before = Before::Nothing(experts);
        for (index, (&tokens, read)) in prompt.as_chunks().0.iter().zip(pages).enumerate() {
            let used = (self.clock, Reverse(index));
            let entry = self.pages.entry(Place { before, tokens }).or_insert_with(|| {
                self.numbered += 1;
                Entry { read: read.clone(), id: self.numbered, used }
            });
            entry.used = used;
            *read = entry.read.clone();
            before = Before::Page(entry.id);
        }
    }

    /// Lets the page go that was unused for longest, and that no running request uses. False
    /// where there is none.
    pub(crate) fn evict(&mut self) -> bool {
        let unused = |(_, entry): &(&Place, &Entry)| Arc::strong_count(&entry.read.page) == 1;
        let oldest = self.pages.iter().filter(unused).min_by_key(|(_, entry)| entry.used);
        let Some(place) = oldest.map(|(place, _)| place.clone()) else { return false };
        self.pages.remove(&place);
        true
    }
}
