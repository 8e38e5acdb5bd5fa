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

/// Memory that was given back, by size in lines.
#[derive(Default)]
pub(crate) struct Buffers(Mutex<BTreeMap<usize, Vec<Vec<Line>>>>);

impl Buffers {
    pub(crate) fn take(&self, len: usize) -> Buffer<'_> {
        let size = size_class(len.div_ceil(LINE));
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = free.get_mut(&size).and_then(Vec::pop);
        drop(free);
        let lines = lines.unwrap_or_else(|| {
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
        let mut free = self.owner.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.entry(lines.len()).or_default().push(lines);
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
    fn size_classes_waste_an_eighth_at_most() {
        for lines in 1..5000 {
            let size = size_class(lines);
            assert!(size >= lines && (size - lines) * 8 <= lines, "{lines} in {size}");
        }
    }
}
