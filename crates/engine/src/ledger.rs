use model::{ExpertSet, Page};

use crate::prefixes::{Prefixes, ReadPage};

/// Who holds the memory for keys and values, counted in pages, never more than `limit`.
///
/// A request's pages are set aside before it runs, so it never fails for want of memory later.
/// What no request needs keeps prompts that were read.
pub(crate) struct Ledger {
    limit: usize,
    /// Set aside for running requests, without the pages that are kept as prefixes.
    own: usize,
    prefixes: Prefixes,
}

/// What the ledger holds for one request.
pub(crate) struct Account {
    experts: ExpertSet,
    /// Pages set aside for this request alone.
    own: usize,
}

impl Account {
    /// Pages set aside for this request alone.
    pub(crate) fn own(&self) -> usize {
        self.own
    }
}

impl Ledger {
    pub(crate) fn new(limit: usize) -> Self {
        Ledger { limit, own: 0, prefixes: Prefixes::default() }
    }

    /// Pages set aside for running requests.
    pub(crate) fn own(&self) -> usize {
        self.own
    }

    /// Pages of prompts, whether running requests use them or not.
    pub(crate) fn kept(&self) -> usize {
        self.prefixes.len()
    }

    /// Sets pages aside for a request of so many tokens, if need be in the place of prefixes that
    /// nobody uses; also gives the pages with which its prompt begins. None where there is no room.
    pub(crate) fn open(
        &mut self,
        experts: ExpertSet,
        prompt: &[u32],
        tokens: usize,
    ) -> Option<(Account, Vec<ReadPage>)> {
        // Held from here on, so none of them is let go.
        let found = self.prefixes.find(experts, prompt);
        let own = tokens.div_ceil(Page::TOKENS) - found.len();
        while self.own + own + self.prefixes.len() > self.limit {
            if !self.prefixes.evict() {
                return None;
            }
        }
        self.own += own;
        Some((Account { experts, own }, found))
    }

    pub(crate) fn close(&mut self, account: Account) {
        self.own -= account.own;
    }

    /// Gives back what the account has beyond so many pages of its own.
    pub(crate) fn shrink(&mut self, account: &mut Account, own: usize) {
        let most = account.own;
        self.give_back(account, most - own.min(most));
    }

    /// Pages with which the prompt begins, behind the first `known`. The account uses them in the
    /// place of its own.
    pub(crate) fn reuse(
        &mut self,
        account: &mut Account,
        prompt: &[u32],
        known: usize,
    ) -> Vec<ReadPage> {
        let mut found = self.prefixes.find(account.experts, prompt);
        let new = found.split_off(known.min(found.len()));
        self.give_back(account, new.len());
        new
    }

    /// Keeps the pages of a prompt's beginning, of which the last `new` were the account's own.
    pub(crate) fn keep(
        &mut self,
        account: &mut Account,
        prompt: &[u32],
        pages: &mut [ReadPage],
        new: usize,
    ) {
        self.prefixes.keep(account.experts, prompt, pages);
        self.give_back(account, new);
    }

    fn give_back(&mut self, account: &mut Account, pages: usize) {
        account.own -= pages;
        self.own -= pages;
    }
}
