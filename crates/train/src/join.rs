//! Joining experts to a base. A department is forgotten by joining the others anew.

use std::fs;
use std::path::{Path, PathBuf};

use model::{ExpertSet, Joined, JoinedExpert};

use crate::{EXPERT_FILE, Error};

/// One expert to join.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub name: String,
    /// The expert's artifact.
    pub folder: PathBuf,
}

/// Fills `folder` with the joined model of `base` and `members`. The experts' files are linked
/// where the file system allows it, copied elsewhere; no weights are changed.
///
/// `base` is written as it is given: relative to the folder in which the model will stand.
///
/// # Errors
/// [`Error::Expert`] if two members share a name or there are too many; [`Error::Io`].
pub fn join(folder: &Path, base: &Path, members: &[Member]) -> Result<Joined, Error> {
    if members.len() > ExpertSet::LIMIT {
        let problem = format!("is one of {}; a model holds {}", members.len(), ExpertSet::LIMIT);
        return Err(Error::Expert { name: members[ExpertSet::LIMIT].name.clone(), problem });
    }
    let mut joined = Joined { base: base.into(), experts: Vec::new() };
    for member in members {
        if joined.experts.iter().any(|e| e.name == member.name) {
            let problem = "is named twice".into();
            return Err(Error::Expert { name: member.name.clone(), problem });
        }
        let file = PathBuf::from(format!("{}.safetensors", member.name));
        link(&member.folder.join(EXPERT_FILE), &folder.join(&file))?;
        joined.experts.push(JoinedExpert { name: member.name.clone(), file });
    }
    joined.write(folder)?;
    Ok(joined)
}

fn link(from: &Path, to: &Path) -> Result<(), Error> {
    let io = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    };
    if to.exists() {
        fs::remove_file(to).map_err(io("replace", to))?;
    }
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).map_err(io("copy", from))?;
    }
    Ok(())
}
