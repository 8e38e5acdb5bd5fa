use std::sync::Arc;

/// Address space taken from the system at once. Pages that nothing is written to take no memory.
const CHUNK: usize = 64 << 20;
/// Regions begin at cache lines.
const ALIGN: usize = 64;

/// Memory for weights: many matrices side by side in few mappings, for which the system is asked
/// to use huge pages. A matrix alone is often smaller than one.
#[derive(Default)]
pub struct Arena {
    chunk: Option<Arc<Chunk>>,
    used: usize,
}

struct Chunk {
    start: *mut u8,
    len: usize,
    /// Keeps the memory of `start` mapped.
    _map: memmap2::MmapMut,
}

// SAFETY: a chunk is only memory; who may access which part is settled by `Region`.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

/// A part of an [`Arena`] that nobody else has.
pub(crate) struct Region {
    chunk: Arc<Chunk>,
    at: usize,
    len: usize,
}

impl Arena {
    pub fn new() -> Self {
        Arena::default()
    }

    /// `len` bytes of zeros.
    ///
    /// # Panics
    /// If the system has no address space left.
    pub(crate) fn take(&mut self, len: usize) -> Region {
        let at = self.used.next_multiple_of(ALIGN);
        if let Some(chunk) = &self.chunk
            && at + len <= chunk.len
        {
            self.used = at + len;
            return Region { chunk: Arc::clone(chunk), at, len };
        }
        let chunk = Arc::new(Chunk::map(len.max(CHUNK)));
        self.chunk = Some(Arc::clone(&chunk));
        self.used = len;
        Region { chunk, at: 0, len }
    }
}

impl Chunk {
    fn map(len: usize) -> Self {
        let mut map = memmap2::MmapMut::map_anon(len).expect("the system has address space left");
        // Only speed depends on it, so a refusal is nothing to report.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Chunk { start: map.as_mut_ptr(), len, _map: map }
    }
}

impl Region {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `take` hands out each byte of the chunk once, so only this region's `bytes_mut`
        // writes here, and that needs it exclusively. The chunk lives as long as the region.
        unsafe { std::slice::from_raw_parts(self.chunk.start.add(self.at), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, with exclusive access to the region.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.start.add(self.at), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap_and_outlive_the_arena() {
        let mut arena = Arena::new();
        let mut regions: Vec<Region> =
            [10, 64, CHUNK - 1000, 900, CHUNK + 5, 7].map(|len| arena.take(len)).into();
        drop(arena);
        for (value, region) in regions.iter_mut().enumerate() {
            assert_eq!(region.bytes().as_ptr() as usize % ALIGN, 0);
            region.bytes_mut().fill(value as u8 + 1);
        }
        for (value, region) in regions.iter().enumerate() {
            assert!(region.bytes().iter().all(|b| *b == value as u8 + 1), "region {value}");
        }
    }
}
