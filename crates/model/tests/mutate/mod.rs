//! Damaged inputs, by the seed: what a broken disk or a hostile sender makes of a good one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Cases that a usual test run tries; with `ARTEL_HOSTILE_SECONDS` they go on so long.
const CASES: u64 = 300;

/// Numbers that lengths and offsets are most often not checked for.
const NUMBERS: [u64; 8] =
    [0, 1, 0x7f, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

/// Tries `input`, damaged by one seed after the other. `attempt` may refuse it, and must not panic.
pub(crate) fn survives(what: &str, input: &[u8], mut attempt: impl FnMut(&[u8])) {
    let seconds = std::env::var("ARTEL_HOSTILE_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().expect("ARTEL_HOSTILE_SECONDS is a number"));
    let (started, mut seed) = (Instant::now(), 0);
    while seconds.map_or(seed < CASES, |s| started.elapsed() < Duration::from_secs(s)) {
        let damaged = damage(input, seed);
        let result = catch_unwind(AssertUnwindSafe(|| attempt(&damaged)));
        assert!(result.is_ok(), "{what}: seed {seed} makes it panic");
        seed += 1;
    }
    println!("{what}: {seed} damaged inputs");
}

/// `input` with one to four places changed. Half of the changes fall into the first kilobytes,
/// where headers are.
fn damage(input: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = input.to_vec();
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let reach = if random.below(2) == 0 { bytes.len().min(4096) } else { bytes.len() };
        let at = random.below(reach);
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => write(&mut bytes, at, &NUMBERS[random.below(8)].to_le_bytes()),
            3 => write(&mut bytes, at, &(NUMBERS[random.below(8)] as u32).to_le_bytes()),
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at..(at + 1 + random.below(16)).min(bytes.len()))),
            6 => {
                let end = (at + 1 + random.below(64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                // A digit of a text: numbers in JSON grow, shrink and change their sign.
                if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                    let text = ["-1", "0", "1e400", "99999999999", "null", "0.5"];
                    let text = text[random.below(text.len())];
                    bytes.splice(at + digit..=at + digit, text.bytes());
                }
            }
        }
    }
    bytes
}

fn write(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..].iter_mut().zip(value).for_each(|(byte, value)| *byte = *value);
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
