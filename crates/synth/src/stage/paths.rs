//! Documents that must not be read: the questions that a model is judged by.

use std::path::{Component, Path, PathBuf};

use corpus::DocumentRecord;

use crate::Error;

/// Refuses a collection with a document inside one of `refused`.
pub(super) fn refuse(documents: &[DocumentRecord], refused: &[PathBuf]) -> Result<(), Error> {
    for document in documents.iter().filter(|document| document.dropped.is_none()) {
        let path = Path::new(&document.path);
        if let Some(refused) = refused.iter().find(|refused| is_inside(path, refused)) {
            return Err(Error::ForbiddenPath { path: path.into(), refused: refused.clone() });
        }
    }
    Ok(())
}

/// Whether `path` is `folder` or below it. One may be absolute and the other relative to the
/// workspace, which is not known here: then it is enough that they can be the same place.
fn is_inside(path: &Path, folder: &Path) -> bool {
    let (path_parts, folder_parts) = (parts(path), parts(folder));
    if folder_parts.is_empty() {
        return false;
    }
    if path.is_absolute() == folder.is_absolute() {
        return path_parts.starts_with(&folder_parts);
    }
    if path.is_absolute() {
        return path_parts.windows(folder_parts.len()).any(|window| window == folder_parts);
    }
    (1..=path_parts.len()).any(|count| folder_parts.ends_with(&path_parts[..count]))
}

fn parts(path: &Path) -> Vec<String> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::ParentDir => {
                parts.pop();
            }
            _ => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_recognised_however_their_path_is_given() {
        let check = |path: &str, folder: &str, expected: bool| {
            assert_eq!(is_inside(Path::new(path), Path::new(folder)), expected, "{path} {folder}");
        };
        check("questions/a.jsonl", "questions", true);
        check("./questions/a.jsonl", "questions/a.jsonl", true);
        check("documents/../questions/a.jsonl", "questions", true);
        check("/firm/questions/a.jsonl", "questions", true);
        check("questions/a.jsonl", "/firm/questions", true);
        check("documents/questions.md", "questions", false);
        check("documents/a.md", "/firm/questions", false);
    }
}
