use crate::arena::{Arena, Region};
use crate::cpu::multiversion;
use crate::pool::Pool;

/// Bytes of a task.
const PIECE: usize = 1 << 20;

/// Memory that is read only to see how fast that goes, in huge pages where the system gives them.
pub struct Readable(Region);

impl Readable {
    /// `len` bytes, in whole megabytes; take many times the size of the caches.
    pub fn new(len: usize) -> Self {
        let mut region = Arena::new().take(len.next_multiple_of(PIECE));
        for (index, byte) in region.bytes_mut().iter_mut().enumerate() {
            *byte = index as u8;
        }
        Readable(region)
    }

    /// How many bytes [`Readable::read`] reads.
    pub fn bytes(&self) -> usize {
        self.0.bytes().len()
    }

    /// Reads all of it once, on all threads. Returns a sum over it, the same each time.
    pub fn read(&self, pool: &Pool) -> u64 {
        let mut sums = vec![0; self.bytes() / PIECE];
        pool.pieces(&mut sums, 1, |index, sum| {
            sum[0] = add_up(&self.0.bytes()[index * PIECE..][..PIECE]);
        });
        sums.iter().fold(0, |a: u64, b| a.wrapping_add(*b))
    }
}

multiversion! {
fn add_up(bytes: &[u8]) -> u64 {
    // The plainest loop is the one that the compiler turns into whole registers.
    let mut sum = 0u64;
    for word in bytes.as_chunks::<8>().0 {
        sum = sum.wrapping_add(u64::from_le_bytes(*word));
    }
    sum
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read() {
        let readable = Readable::new(3 * PIECE - 5);
        assert_eq!(readable.bytes(), 3 * PIECE);
        let words = readable.0.bytes().as_chunks::<8>().0;
        let expected = words.iter().fold(0u64, |a, w| a.wrapping_add(u64::from_le_bytes(*w)));
        assert_eq!(readable.read(&Pool::new(2)), expected);
    }
}
