//! Duplicates: exact by hash, near ones by MinHash and locality-sensitive hashing.
//!
//! Source: Broder 1997; bands, rows and shingles as in datatrove (FineWeb). Candidates are then
//! compared by their exact Jaccard similarity, and two texts whose numbers differ are never
//! duplicates: the sheets of two pumps may share all words but the values, and these are what the
//! sheets are for.

use std::collections::HashMap;

/// Words in a shingle.
const SHINGLE: usize = 5;
const BANDS: usize = 14;
const ROWS: usize = 8;
/// Texts of a bucket that a further one is compared with.
const MAX_COMPARED: usize = 32;

/// Why a text is one too many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Duplicate {
    /// The text that is kept.
    pub(crate) of: usize,
    pub(crate) exact: bool,
}

/// For each text the one that makes it superfluous: of each group of duplicates the longest is
/// kept, the first of several as long. `similarity` above 1 leaves exact duplicates only.
pub(crate) fn duplicates(texts: &[&str], similarity: f64) -> Vec<Option<Duplicate>> {
    let mut groups = UnionFind { parent: (0..texts.len()).collect() };
    let mut first: HashMap<String, usize> = HashMap::new();
    let mut exact_of = vec![None; texts.len()];
    for (index, text) in texts.iter().enumerate() {
        let same = *first.entry(normalised(text)).or_insert(index);
        if same != index {
            groups.join(same, index);
            exact_of[index] = Some(same);
        }
    }
    if similarity <= 1.0 {
        let sets: Vec<Shingles> = texts.iter().map(|text| Shingles::of(text)).collect();
        let distinct: Vec<usize> = (0..texts.len()).filter(|i| exact_of[*i].is_none()).collect();
        join_near(&sets, &distinct, similarity, &mut groups);
    }
    let mut kept: HashMap<usize, usize> = HashMap::new();
    for index in 0..texts.len() {
        let best = kept.entry(groups.root(index)).or_insert(index);
        if crate::chunk::words(texts[index]) > crate::chunk::words(texts[*best]) {
            *best = index;
        }
    }
    (0..texts.len())
        .map(|index| {
            let of = kept[&groups.root(index)];
            let exact = exact_of[index] == Some(of) || exact_of[of] == Some(index);
            (of != index).then_some(Duplicate { of, exact })
        })
        .collect()
}

/// Case and white space do not tell texts apart.
fn normalised(text: &str) -> String {
    crate::read::one_line(&text.to_lowercase())
}

fn join_near(sets: &[Shingles], distinct: &[usize], similarity: f64, groups: &mut UnionFind) {
    let permutations = permutations();
    let mut buckets: HashMap<(usize, u64), Vec<usize>> = HashMap::new();
    for &index in distinct.iter().filter(|index| !sets[**index].hashes.is_empty()) {
        let signature = signature(&sets[index].hashes, &permutations);
        for (band, rows) in signature.chunks(ROWS).enumerate() {
            let key = rows.iter().fold(band as u64, |hash, row| mix(hash ^ u64::from(*row)));
            let bucket = buckets.entry((band, key)).or_default();
            for &other in bucket.iter() {
                if groups.root(other) != groups.root(index)
                    && sets[other].is_near(&sets[index], similarity)
                {
                    groups.join(other, index);
                }
            }
            if bucket.len() < MAX_COMPARED {
                bucket.push(index);
            }
        }
    }
}

/// The hashes of a text's shingles, ordered, each once; and of its words that hold a digit.
struct Shingles {
    hashes: Vec<u64>,
    numbers: Vec<u64>,
}

impl Shingles {
    fn of(text: &str) -> Self {
        let words: Vec<String> = tokens(text);
        let hashed: Vec<u64> = words.iter().map(|w| hash(w)).collect();
        let mut numbers: Vec<u64> = words
            .iter()
            .zip(&hashed)
            .filter(|(word, _)| word.contains(|c: char| c.is_ascii_digit()))
            .map(|(_, hash)| *hash)
            .collect();
        numbers.sort_unstable();
        Shingles { hashes: grams(&hashed, SHINGLE), numbers }
    }

    fn is_near(&self, other: &Self, similarity: f64) -> bool {
        let shared = shared(&self.hashes, &other.hashes);
        let all = self.hashes.len() + other.hashes.len() - shared;
        self.numbers == other.numbers && shared as f64 >= similarity * all as f64
    }
}

/// Words in lower case without punctuation around them; a sign before a number stays.
fn tokens(text: &str) -> Vec<String> {
    let edge = |c: char| !c.is_alphanumeric();
    let trimmed = text.split_whitespace().filter_map(|word| {
        let bare = word.trim_matches(edge);
        let start = word.find(bare).filter(|_| !bare.is_empty())?;
        let signed = word[..start].ends_with(['-', '+', '−'])
            && bare.starts_with(|c: char| c.is_ascii_digit());
        Some(if signed { format!("-{bare}") } else { bare.to_lowercase() })
    });
    trimmed.collect()
}

fn grams(words: &[u64], n: usize) -> Vec<u64> {
    let mut grams: Vec<u64> = words
        .windows(n)
        .map(|gram| gram.iter().fold(n as u64, |hash, word| mix(hash ^ word)))
        .collect();
    grams.sort_unstable();
    grams.dedup();
    grams
}

/// How many hashes two ordered lists share.
fn shared(a: &[u64], b: &[u64]) -> usize {
    let (mut i, mut j, mut count) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, count) = (i + 1, j + 1, count + 1),
        }
    }
    count
}

/// FNV-1a, mixed: stable over versions and machines, unlike the standard library's hasher.
fn hash(text: &str) -> u64 {
    mix(text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    }))
}

/// The finaliser of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Multiply-shift hash functions: an odd factor and a summand each.
fn permutations() -> Vec<(u64, u64)> {
    (0..(BANDS * ROWS) as u64).map(|i| (mix(2 * i) | 1, mix(2 * i + 1))).collect()
}

fn signature(hashes: &[u64], permutations: &[(u64, u64)]) -> Vec<u32> {
    let least = |(factor, summand): &(u64, u64)| {
        let values =
            hashes.iter().map(|h| (h.wrapping_mul(*factor).wrapping_add(*summand) >> 32) as u32);
        values.min().unwrap_or(u32::MAX)
    };
    permutations.iter().map(least).collect()
}

struct UnionFind {
    parent: Vec<usize>,
}

impl UnionFind {
    fn root(&mut self, mut index: usize) -> usize {
        while self.parent[index] != index {
            self.parent[index] = self.parent[self.parent[index]];
            index = self.parent[index];
        }
        index
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b);
    }
}

/// Words in the n-grams by which training text is compared with held-out text.
const LEAK_GRAM: usize = 8;
/// Held-out texts that one n-gram is counted for; one in more of them is a set phrase.
const MAX_OWNERS: usize = 64;

/// Shared n-grams from which a long training text repeats a short held-out one: a set sentence in
/// both does not count.
const MIN_SHARED: usize = 25;

/// For each training text the held-out text that it repeats: more than half the 8-grams of either
/// are in the other, or both are the same.
pub(crate) fn leaks(training: &[&str], held_out: &[&str]) -> Vec<Option<usize>> {
    let grams_of = |text: &&str| {
        let words: Vec<u64> = tokens(text).iter().map(|w| hash(w)).collect();
        grams(&words, LEAK_GRAM)
    };
    let mut exact: HashMap<String, usize> = HashMap::new();
    let mut owners: HashMap<u64, Vec<usize>> = HashMap::new();
    let mut sizes = Vec::new();
    for (index, text) in held_out.iter().enumerate() {
        exact.entry(normalised(text)).or_insert(index);
        let grams = grams_of(text);
        sizes.push(grams.len());
        for gram in grams {
            let owners = owners.entry(gram).or_default();
            if owners.len() < MAX_OWNERS {
                owners.push(index);
            }
        }
    }
    let leak = |text: &&str| {
        if let Some(&same) = exact.get(&normalised(text)) {
            return Some(same);
        }
        let grams = grams_of(text);
        let mut covered = 0;
        let mut counts: std::collections::BTreeMap<usize, usize> = Default::default();
        for owners in grams.iter().filter_map(|gram| owners.get(gram)) {
            covered += 1;
            owners.iter().for_each(|owner| *counts.entry(*owner).or_default() += 1);
        }
        let most = counts.iter().max_by_key(|(owner, count)| (**count, std::cmp::Reverse(**owner)));
        if 2 * covered > grams.len() {
            return most.map(|(owner, _)| *owner);
        }
        let repeats = |owner: usize, count: usize| count >= MIN_SHARED && 2 * count > sizes[owner];
        counts.iter().find(|(owner, count)| repeats(**owner, **count)).map(|(owner, _)| *owner)
    };
    training.iter().map(leak).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 200 words that repeat nothing.
    fn prose(seed: u64) -> String {
        let words: Vec<String> =
            (0..200).map(|i| format!("w{}", letters(mix(seed * 1000 + i)))).collect();
        words.join(" ")
    }

    fn letters(mut value: u64) -> String {
        (0..6)
            .map(|_| {
                value = mix(value);
                char::from(b'a' + (value % 26) as u8)
            })
            .collect()
    }

    fn check(texts: &[&str], expected: &[Option<(usize, bool)>]) {
        let found: Vec<_> =
            duplicates(texts, 0.8).into_iter().map(|d| d.map(|d| (d.of, d.exact))).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn case_and_space_make_no_difference_and_the_first_is_kept() {
        check(&["A  b", "a b\n", "a c"], &[None, Some((0, true)), None]);
    }

    #[test]
    fn a_text_with_a_few_other_words_is_a_near_duplicate_and_the_longest_is_kept() {
        let text = prose(1);
        let longer = format!("{text} and some words more");
        let other = prose(2);
        check(&[&text, &other, &longer], &[Some((2, false)), None, None]);
    }

    #[test]
    fn texts_that_differ_in_a_number_are_both_kept() {
        let text = prose(3);
        check(&[&format!("{text} torque 12 Nm"), &format!("{text} torque 14 Nm")], &[None, None]);
        check(&[&format!("{text} offset -5 mm"), &format!("{text} offset 5 mm")], &[None, None]);
    }

    #[test]
    fn training_text_that_repeats_held_out_text_is_found() {
        let held = prose(4);
        let first_half: Vec<&str> = held.split(' ').take(120).collect();
        let inside = format!("{} {}", prose(5), first_half.join(" "));
        let changed = held.replacen("w", "changed", 3);
        let other = prose(6);
        let training = [inside.as_str(), &changed, &other, "short one"];
        assert_eq!(leaks(&training, &[&held, "Short  one"]), [Some(0), Some(0), None, Some(1)]);
    }
}
