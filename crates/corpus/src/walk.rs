//! Finding the files of the folders.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::read::{self, Format};

/// A file of the folders, or a place in them that cannot be entered.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// Relative to the workspace if it lies in it, with `/`.
    pub(crate) name: String,
    /// Relative to the folder of the collection.
    pub(crate) in_folder: String,
    /// Why it is not read.
    pub(crate) trouble: Option<String>,
}

/// All files of the folders, ordered by name.
///
/// # Errors
/// [`Error::NoFolder`].
pub(crate) fn walk(folders: &[PathBuf], root: &Path) -> Result<Vec<Found>, Error> {
    let mut found = BTreeMap::new();
    let mut visited = HashSet::new();
    for folder in folders {
        let path = root.join(folder);
        if !path.is_dir() {
            return Err(Error::NoFolder { path });
        }
        let mut walk = Walk { root, folder: &path, found: &mut found, visited: &mut visited };
        walk.folder(&path);
    }
    Ok(found.into_values().collect())
}

struct Walk<'a> {
    root: &'a Path,
    folder: &'a Path,
    found: &'a mut BTreeMap<String, Found>,
    /// Folders by their true path: a link to one of them adds nothing, and may lead in circles.
    visited: &'a mut HashSet<PathBuf>,
}

impl Walk<'_> {
    fn folder(&mut self, path: &Path) {
        let canonical = path.canonicalize();
        let fresh = canonical.is_ok_and(|canonical| self.visited.insert(canonical));
        if !fresh {
            if path != self.folder {
                self.add(
                    path,
                    Some("folder read already: a symbolic link leads back to it".into()),
                );
            }
            return;
        }
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(e) => return self.add(path, Some(format!("unreadable: {e}"))),
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Lock files of office programs begin with "~$".
            if name.starts_with('.') || name.starts_with("~$") {
                self.add(&path, Some("hidden file".into()));
                continue;
            }
            match fs::metadata(&path) {
                Ok(data) if data.is_dir() => self.folder(&path),
                Ok(data) if !data.is_file() => self.add(&path, Some("not a regular file".into())),
                Ok(data) => {
                    let trouble = trouble(&path, data.len());
                    self.add(&path, trouble);
                }
                Err(_) if path.is_symlink() => {
                    self.add(&path, Some("symbolic link to nothing or to itself".into()))
                }
                Err(e) => self.add(&path, Some(format!("unreadable: {e}"))),
            }
        }
    }

    fn add(&mut self, path: &Path, trouble: Option<String>) {
        let name = slashed(path.strip_prefix(self.root).unwrap_or(path));
        let in_folder = slashed(path.strip_prefix(self.folder).unwrap_or(path));
        let found = Found { path: path.into(), name: name.clone(), in_folder, trouble };
        self.found.entry(name).or_insert(found);
    }
}

fn slashed(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.trim_start_matches("./").replace(std::path::MAIN_SEPARATOR, "/")
}

fn trouble(path: &Path, bytes: u64) -> Option<String> {
    if Format::of(path).is_none() {
        let extension =
            path.extension().map(|e| format!(".{}", e.to_string_lossy().to_lowercase()));
        return Some(format!(
            "unknown format {}",
            extension.as_deref().unwrap_or("(no extension)")
        ));
    }
    let limit = read::MAX_FILE_BYTES;
    (bytes > limit).then(|| format!("too large: {bytes} bytes, the limit is {limit}"))
}
