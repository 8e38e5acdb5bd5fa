//! Drafts of what comes next, looked up in what stands there already.
//!
//! **Source**: Saxena 2023, "Prompt Lookup Decoding"; drafts are accepted as far as they are what
//! would have been drawn anyway (the greedy case of Leviathan et al. 2023, arXiv 2211.17192).

/// Tokens that must stand there already, for what followed them to be drafted: at first, at least,
/// and at most.
const FIRST: usize = 3;
const LEAST: usize = 2;
const MOST: usize = 7;
/// Tokens of a draft for which a step may have room.
const LONGEST: usize = 16;

/// What one sequence has learned of its drafts.
pub(crate) struct Lookup {
    /// Tokens of a draft, at most; 0 for none ever.
    most: usize,
    /// Tokens that must have stood there before.
    needed: usize,
    /// Tokens of the next draft, at most.
    length: usize,
}

impl Lookup {
    pub(crate) fn new(most: usize) -> Self {
        Lookup { most: most.min(LONGEST), needed: FIRST, length: FIRST }
    }

    /// What may follow `tokens`: up to `room` of them, because they did before. No more than stood
    /// before them then as now: the longer the text is the same, the longer it will stay so.
    pub(crate) fn draft(&mut self, tokens: &[u32], room: usize) -> Vec<u32> {
        let most = self.length.min(self.most).min(room);
        if most == 0 {
            return Vec::new();
        }
        let (from, same) = continuation(tokens, self.most.max(MOST));
        if same < self.needed {
            return Vec::new();
        }
        let length = same.min(most);
        let mut draft = Vec::with_capacity(length);
        for at in from..from + length {
            // Behind the end of the tokens goes on what repeats itself.
            draft.push(*tokens.get(at).unwrap_or_else(|| &draft[at - tokens.len()]));
        }
        draft
    }

    /// Takes in how many of a draft's tokens were right. Drafts grow while they are right; one that is
    /// mostly wrong cost time, and makes the next ones rarer.
    pub(crate) fn learn(&mut self, drafted: usize, right: usize) {
        if drafted == 0 {
            return;
        }
        self.length = if right == drafted { 2 * self.length } else { right + 1 };
        self.length = self.length.min(self.most);
        self.needed = match 2 * right >= drafted {
            true => (self.needed - 1).max(LEAST),
            false => (self.needed + 1).min(MOST),
        };
    }
}

/// The place before the end with the most tokens before it that stand before the end, too, up to
/// `enough`: its index, and how many they are. Of several such places the last.
fn continuation(tokens: &[u32], enough: usize) -> (usize, usize) {
    let Some((&last, before)) = tokens.split_last() else { return (0, 0) };
    let (mut best, mut most) = (0, 0);
    // By its last token, of which there are few.
    for at in (1..tokens.len()).rev().filter(|&at| tokens[at - 1] == last) {
        let pairs = tokens[..at - 1].iter().rev().zip(before.iter().rev());
        let same = 1 + pairs.take(enough - 1).take_while(|(a, b)| a == b).count();
        if same > most {
            (best, most) = (at, same);
            if same == enough {
                break;
            }
        }
    }
    (best, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_what_followed_the_last_time() {
        for (tokens, room, expected) in [
            (&[][..], 4, &[][..]),
            (&[7, 7], 4, &[]),
            (&[1, 2, 3, 4], 4, &[]),
            // As many as were the same, the last time they were.
            (&[1, 2, 3, 0, 1, 2, 4, 5, 6, 1, 2], 9, &[4, 5]),
            // The longest, though it is further back.
            (&[9, 1, 2, 3, 4, 1, 2, 5, 9, 1, 2], 9, &[3, 4, 1]),
            (&[9, 1, 2, 3, 4, 1, 2, 5, 9, 1, 2], 1, &[3]),
            (&[1, 2, 3, 1, 2], 0, &[]),
            // What repeats itself goes on.
            (&[5, 1, 2, 1, 2, 1, 2], 9, &[1, 2, 1, 2]),
            (&[6, 6, 6], 9, &[6, 6]),
            (&[6, 6, 6, 6], 2, &[6, 6]),
        ] {
            let mut lookup = Lookup { needed: 2, length: 8, ..Lookup::new(8) };
            assert_eq!(lookup.draft(tokens, room), expected, "{tokens:?}");
        }
        assert!(Lookup::new(0).draft(&[6; 40], 9).is_empty());
    }

    #[test]
    fn drafts_grow_while_they_are_right() {
        let (mut lookup, tokens) = (Lookup::new(usize::MAX), [6; 40]);
        let mut next = |drafted, right| {
            lookup.learn(drafted, right);
            lookup.draft(&tokens, 100).len()
        };
        assert_eq!([next(0, 0), next(3, 3), next(6, 6), next(12, 12)], [3, 6, 12, 16]);
        assert_eq!([next(16, 3), next(4, 0), next(1, 1)], [4, 1, 2]);
    }

    #[test]
    fn drafts_need_the_more_the_more_often_they_are_wrong() {
        let mut lookup = Lookup::new(10);
        let drafts = |lookup: &mut Lookup, same: u32| {
            let tokens: Vec<u32> = (0..same).chain([90, 91]).chain(0..same).collect();
            !lookup.draft(&tokens, 9).is_empty()
        };
        assert!(!drafts(&mut lookup, 2) && drafts(&mut lookup, 3));
        lookup.learn(3, 1);
        assert!(!drafts(&mut lookup, 3) && drafts(&mut lookup, 4));
        (0..9).for_each(|_| lookup.learn(3, 0));
        assert!(!drafts(&mut lookup, 6) && drafts(&mut lookup, 7));
        lookup.learn(1, 1);
        assert!(drafts(&mut lookup, 6));
        (0..9).for_each(|_| lookup.learn(4, 4));
        assert!(!drafts(&mut lookup, 1) && drafts(&mut lookup, 2));
        // Where nothing was drafted there is nothing to learn.
        lookup.learn(0, 0);
        assert!(!drafts(&mut lookup, 1));
    }
}
