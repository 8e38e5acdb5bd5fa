use std::sync::Arc;

use kernel::attention::{FEW_ROWS, KvFormat, KvPart, KvPartMut, KvValues, Pages};

use super::ExpertSet;
use crate::Config;

/// Keys and values of the tokens that a sequence has so far, in every layer.
///
/// They stand in pages. Clones share them: a page that both hold is copied when one writes to it.
#[derive(Clone)]
pub struct KvCache {
    pages: Vec<Arc<Page>>,
    pub(super) len: usize,
    /// New tokens attended to together.
    pub(super) together: usize,
    format: KvFormat,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// Keys and values of [`Page::TOKENS`] tokens that follow each other.
///
/// **Shapes**: `[layers, …]`, of each layer as [`Pages`] says; keys are rotated to their positions.
#[derive(Clone)]
pub struct Page(KvValues);

impl Page {
    pub const TOKENS: usize = Pages::TOKENS;

    /// Memory that a page takes, in bytes.
    pub fn bytes(config: &Config, format: KvFormat) -> usize {
        let values = config.layers * Pages::page_len(config.kv_heads, config.head_dim);
        format.bytes(values, config.head_dim)
    }
}

impl KvCache {
    /// A cache without tokens, in f32.
    pub fn new(config: &Config) -> Self {
        KvCache::in_format(config, KvFormat::F32)
    }

    /// A cache without tokens.
    pub fn in_format(config: &Config, format: KvFormat) -> Self {
        let Config { layers, kv_heads, head_dim, .. } = *config;
        let (pages, together) = (Vec::new(), usize::MAX);
        KvCache { pages, len: 0, together, format, layers, kv_heads, head_dim }
    }

    /// A cache without tokens for [`Decoder::further`](super::Decoder::further).
    pub fn of_mtp(config: &Config, format: KvFormat) -> Self {
        KvCache { layers: 1, ..KvCache::in_format(config, format) }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pages, of which the last may hold fewer tokens than it has room for.
    pub fn pages(&self) -> &[Arc<Page>] {
        &self.pages
    }

    /// Appends full pages that were computed behind the same tokens.
    ///
    /// # Panics
    /// If the last page of this cache is not full.
    pub fn append(&mut self, pages: impl Iterator<Item = Arc<Page>>) {
        assert!(self.len.is_multiple_of(Page::TOKENS), "{} tokens fill no pages", self.len);
        self.pages.extend(pages);
        self.len = self.pages.len() * Page::TOKENS;
    }

    /// Puts an equal page, which others hold too, in the place of this one.
    pub fn share(&mut self, index: usize, page: Arc<Page>) {
        debug_assert!(self.pages[index].0 == page.0, "pages differ");
        self.pages[index] = page;
    }

    /// From now on new tokens are attended to one by one, so that each gets the bits that it would
    /// get alone, however many come at once.
    pub fn attend_one_by_one(&mut self) {
        self.together = FEW_ROWS - 1;
    }

    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(Page::TOKENS));
    }

    /// Makes room for `tokens` more, whose keys and values are written to the [reserved](Self::reserved) pages.
    pub(super) fn reserve(&mut self, tokens: usize) {
        let (format, size, dim) = (self.format, self.layers * self.layer_len(), self.head_dim);
        let pages = (self.len + tokens).div_ceil(Page::TOKENS);
        self.pages.resize_with(pages, || Arc::new(Page(KvValues::zeros(format, size, dim))));
        for page in &mut self.pages[self.len / Page::TOKENS..] {
            // A copy, where a clone of the cache holds the page too.
            Arc::make_mut(page);
        }
    }

    /// A layer's part of the pages in which tokens from position `len` on are to be written.
    pub(super) fn reserved(&mut self, layer: usize) -> impl Iterator<Item = KvPartMut<'_>> {
        let size = self.layer_len();
        self.pages[self.len / Page::TOKENS..].iter_mut().map(move |page| {
            let page = Arc::get_mut(page).expect("reserved pages belong to this cache alone");
            page.0.part_mut(layer * size..(layer + 1) * size)
        })
    }

    /// Keys and values of a layer, page by page.
    pub(super) fn layer(&self, layer: usize) -> impl Iterator<Item = KvPart<'_>> {
        let size = self.layer_len();
        self.pages.iter().map(move |page| page.0.part(layer * size..(layer + 1) * size))
    }

    fn layer_len(&self) -> usize {
        Pages::page_len(self.kv_heads, self.head_dim)
    }
}

/// New tokens of one sequence, to stand after those its cache holds.
pub struct Input<'a> {
    /// At least one.
    pub tokens: &'a [u32],
    pub cache: &'a mut KvCache,
    pub experts: ExpertSet,
}
