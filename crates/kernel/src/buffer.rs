//! Memory for the intermediate matrices of a step, used again instead of taken from the system.
//!
//! A training step needs hundreds of megabytes for a moment each. Fresh memory comes zeroed, page by
//! page, which costs more than many of the operations that fill it.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use crate::huge_pages;

/// Sixteen 32-bit values: a cache line, and a register of AVX-512.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; LINE]);

/// Values of a [`Line`].
pub(crate) const LINE: usize = 16;

/// The values of lines, one after the other.
pub(crate) fn flat(lines: &[Line]) -> &[u32] {
    // SAFETY: a `Line` is sixteen u32 without padding, so the memory is that of this many u32.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LINE) }
}

/// As [`flat`].
pub(crate) fn flat_mut(lines: &mut [Line]) -> &mut [u32] {
    // SAFETY: as in `flat`; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LINE) }
}

/// f32 and u32 have the same size and alignment, and every bit pattern is valid for both.
pub(crate) fn as_lanes(values: &[f32]) -> &[u32] {
    // SAFETY: as said above; the lifetime and the length stay.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// As [`as_lanes`].
pub(crate) fn as_floats(lanes: &[u32]) -> &[f32] {
    // SAFETY: as in `as_lanes`.
    unsafe { std::slice::from_raw_parts(lanes.as_ptr().cast(), lanes.len()) }
}

/// As [`as_lanes`].
pub(crate) fn as_floats_mut(lanes: &mut [u32]) -> &mut [f32] {
    // SAFETY: as in `as_lanes`; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), lanes.len()) }
}

/// Memory that was given back.
#[derive(Default)]
pub(crate) struct Buffers(Mutex<Store>);

/// What is on loan and what lies free together are no more than a quarter above what was ever on loan
/// at once: what has lain free longest goes back to the system before more is taken from it.
#[derive(Default)]
struct Store {
    /// By size in lines; each with when it was given back.
    free: BTreeMap<usize, Vec<(u64, Vec<Line>)>>,
    /// Loans so far.
    time: u64,
    free_lines: usize,
    loaned: usize,
    most_loaned: usize,
}

impl Store {
    /// Memory of that many lines, or a quarter more.
    fn take(&mut self, size: usize) -> Option<Vec<Line>> {
        let mut sizes = self.free.range_mut(size..=size + size / 4);
        let (&found, list) = sizes.next()?;
        let (_, lines) = list.pop().expect("no list is empty");
        if list.is_empty() {
            self.free.remove(&found);
        }
        self.free_lines -= found;
        Some(lines)
    }

    fn lend(&mut self, size: usize) {
        self.time += 1;
        self.loaned += size;
        self.most_loaned = self.most_loaned.max(self.loaned);
    }

    fn give_back(&mut self, lines: Vec<Line>) {
        self.loaned -= lines.len();
        self.free_lines += lines.len();
        self.free.entry(lines.len()).or_default().push((self.time, lines));
    }

    /// Lets go what is too much.
    fn trim(&mut self) -> Vec<Vec<Line>> {
        let mut gone = Vec::new();
        while self.free_lines + self.loaned > self.most_loaned + self.most_loaned / 4 {
            let oldest = self.free.iter().min_by_key(|(_, list)| list[0].0);
            let Some((&size, _)) = oldest else { break };
            let list = self.free.get_mut(&size).expect("just found");
            gone.push(list.remove(0).1);
            if list.is_empty() {
                self.free.remove(&size);
            }
            self.free_lines -= size;
        }
        gone
    }
}

impl Buffers {
    pub(crate) fn take(&self, len: usize) -> Buffer<'_> {
        let size = size_class(len.div_ceil(LINE));
        let mut store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = store.take(size);
        store.lend(found.as_ref().map_or(size, Vec::len));
        let gone = if found.is_none() { store.trim() } else { Vec::new() };
        drop(store);
        drop(gone);
        let lines = found.unwrap_or_else(|| {
            let lines = vec![Line([0; LINE]); size];
            huge_pages(&lines);
            lines
        });
        Buffer { lines, len, owner: self }
    }
}

/// Rounded up to one of eight sizes for each power of two, so that batches of many lengths share.
fn size_class(lines: usize) -> usize {
    let step = (lines.next_power_of_two() / 16).max(1);
    lines.next_multiple_of(step)
}

/// f32 values on loan from a [`Pool`](crate::Pool): whatever they were before, at first. The memory
/// goes back when the buffer is dropped.
pub struct Buffer<'a> {
    lines: Vec<Line>,
    len: usize,
    owner: &'a Buffers,
}

impl Buffer<'_> {
    /// Whole lines, the last of which may go beyond the buffer's length.
    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines[..self.len.div_ceil(LINE)]
    }

    pub(crate) fn lines_mut(&mut self) -> &mut [Line] {
        &mut self.lines[..self.len.div_ceil(LINE)]
    }

    pub(crate) fn lanes(&self) -> &[u32] {
        &flat(&self.lines)[..self.len]
    }

    pub(crate) fn lanes_mut(&mut self) -> &mut [u32] {
        &mut flat_mut(&mut self.lines)[..self.len]
    }
}

impl Deref for Buffer<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        as_floats(self.lanes())
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        as_floats_mut(self.lanes_mut())
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        self.owner.0.lock().unwrap_or_else(PoisonError::into_inner).give_back(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_for_lengths_of_the_same_class() {
        let buffers = Buffers::default();
        let mut first = buffers.take(1000);
        first.fill(7.0);
        let address = first.as_ptr();
        drop(first);
        let second = buffers.take(990);
        assert_eq!((second.as_ptr(), second.len()), (address, 990));
        assert!(second.iter().all(|&value| value == 7.0), "it is not cleared");
        let third = buffers.take(1000);
        assert_ne!(third.as_ptr(), address, "it is still on loan");
    }

    #[test]
    fn memory_of_many_lengths_does_not_add_up() {
        let buffers = Buffers::default();
        let held = || {
            let store = buffers.0.lock().unwrap();
            assert_eq!(store.loaned, 0);
            let sizes = store.free.iter().map(|(size, list)| size * list.len());
            assert_eq!(sizes.sum::<usize>(), store.free_lines);
            store.free_lines
        };
        for round in 0..3 {
            for len in [100, 1000, 10_000, 100_000, 50_000, 3000] {
                let (one, two) = (buffers.take(len), buffers.take(len + round));
                assert!(one.len() == len && two.len() == len + round);
            }
        }
        let most = 2 * size_class(100_002_usize.div_ceil(LINE));
        assert!(held() <= most + most / 4, "{} lines, at most {most} were on loan", held());
        // A little more than is asked for is taken as well, what has lain longest goes first.
        let first = buffers.take(3000).as_ptr();
        assert_eq!(buffers.take(2600).as_ptr(), first);
    }

    #[test]
    fn size_classes_waste_an_eighth_at_most() {
        for lines in 1..5000 {
            let size = size_class(lines);
            assert!(size >= lines && (size - lines) * 8 <= lines, "{lines} in {size}");
        }
    }
}
