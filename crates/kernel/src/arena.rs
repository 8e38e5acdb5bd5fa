use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
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
    in_file: bool,
    /// Keeps the memory of `start` mapped.
    map: memmap2::MmapMut,
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

    /// As [`Arena::new`], but the first `len` bytes lie in a file without a name in `folder`, which is gone
    /// with the arena's regions. The system writes them there, takes their memory for something else, and
    /// reads them again when they are asked for: so they can be more than the memory there is.
    ///
    /// # Errors
    /// If the folder cannot be written to, or has no room for the file.
    pub fn in_file(folder: &Path, len: usize) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        reserve(&file, len as u64)?;
        // SAFETY: the file has no name, so that nobody else opens, changes or truncates it.
        let map = unsafe { memmap2::MmapMut::map_mut(&file)? };
        Ok(Arena { chunk: Some(Arc::new(Chunk::of(map, true))), used: 0 })
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
        let map = memmap2::MmapMut::map_anon(len).expect("the system has address space left");
        // Only speed depends on it, so a refusal is nothing to report.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Chunk::of(map, false)
    }

    fn of(mut map: memmap2::MmapMut, in_file: bool) -> Self {
        Chunk { start: map.as_mut_ptr(), len: map.len(), in_file, map }
    }
}

/// Takes room on the disk: what is written to a mapping that has none ends the program.
fn reserve(file: &File, len: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        Ok(fallocate(file, FallocateFlags::empty(), 0, len)?)
    }
    #[cfg(not(target_os = "linux"))]
    file.set_len(len)
}

impl Region {
    /// Whether its content may have to be read from a file.
    pub(crate) fn in_file(&self) -> bool {
        self.chunk.in_file
    }

    /// Has the system read bytes that lie in a file, while other work goes on.
    pub(crate) fn will_need(&self, bytes: Range<usize>) {
        // Only speed depends on it.
        #[cfg(unix)]
        let _ = self.chunk.map.advise_range(
            memmap2::Advice::WillNeed,
            self.at + bytes.start,
            bytes.len(),
        );
        #[cfg(not(unix))]
        let _ = bytes;
    }

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
    fn regions_in_a_file_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut arena = Arena::in_file(folder.path(), 5000).unwrap();
        let mut regions: Vec<Region> = [3000, 1900, 500].map(|len| arena.take(len)).into();
        // The last found no room there.
        assert_eq!([0, 1, 2].map(|i| regions[i].in_file()), [true, true, false]);
        for (value, region) in regions.iter_mut().enumerate() {
            region.bytes_mut().fill(value as u8 + 1);
        }
        drop(arena);
        regions[1].will_need(100..1900);
        for (value, region) in regions.iter().enumerate() {
            assert!(region.bytes().iter().all(|b| *b == value as u8 + 1), "region {value}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(Arena::in_file(&folder.path().join("nowhere"), 10).is_err());
        assert!(Arena::in_file(folder.path(), 1 << 60).is_err());
    }

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
