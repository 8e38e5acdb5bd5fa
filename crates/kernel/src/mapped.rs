use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// A file's content, mapped read-only into memory.
pub struct MappedFile(Option<memmap2::Mmap>);

impl MappedFile {
    /// Maps the file; an empty file gives an empty slice.
    ///
    /// # Errors
    /// Whatever the system says of the path.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(MappedFile(None));
        }
        // SAFETY: the mapping is read-only and private. Model files are written once, under a
        // temporary name, and never changed in place; a user who truncates one while it is mapped
        // gets a SIGBUS, as with every program that maps files.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(MappedFile(Some(map)))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}
