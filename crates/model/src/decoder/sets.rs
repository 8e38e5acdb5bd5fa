/// A set of department experts, by their index in the model: what a request may use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ExpertSet(u64);

impl ExpertSet {
    /// As many experts as a model can have.
    pub const LIMIT: usize = 64;
    pub const NONE: ExpertSet = ExpertSet(0);

    /// The first `count` experts.
    pub fn all(count: usize) -> Self {
        ExpertSet(if count >= Self::LIMIT { u64::MAX } else { (1 << count) - 1 })
    }

    pub fn single(index: usize) -> Self {
        Self::NONE.with(index)
    }

    /// # Panics
    /// If `index` is not below [`ExpertSet::LIMIT`].
    pub fn with(self, index: usize) -> Self {
        assert!(index < Self::LIMIT, "expert {index} of at most {}", Self::LIMIT);
        ExpertSet(self.0 | 1 << index)
    }

    pub fn contains(self, index: usize) -> bool {
        index < Self::LIMIT && self.0 >> index & 1 == 1
    }

    pub fn intersect(self, other: Self) -> Self {
        ExpertSet(self.0 & other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}
