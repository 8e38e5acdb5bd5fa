use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::{Error, FileEntry, Hash, Manifest, Recipe, io};

/// The kinds of artifact; each has its folder in a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Model,
    Collection,
    Examples,
    Expert,
    Report,
    Export,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::Model, Kind::Collection, Kind::Examples, Kind::Expert, Kind::Report, Kind::Export];

    /// The folder that holds the artifacts of this kind.
    pub fn folder(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Collection => "collections",
            Kind::Examples => "examples",
            Kind::Expert => "experts",
            Kind::Report => "reports",
            Kind::Export => "exports",
        }
    }
}

/// The folder of one company's `artel.toml` and all that is made from it.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
}

/// A finished artifact.
#[derive(Clone, Debug)]
pub struct Artifact {
    pub path: PathBuf,
    pub manifest: Manifest,
}

/// One step of an artifact's descent.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// How many steps from the artifact asked about.
    pub depth: usize,
    /// `collections/maintenance`, or a source file's path.
    pub name: String,
    pub hash: Hash,
    /// False where the workspace now holds other content under this name.
    pub current: bool,
}

impl Workspace {
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Workspace { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the artifact is, or would be.
    pub fn path(&self, kind: Kind, name: &str) -> PathBuf {
        self.root.join(kind.folder()).join(name)
    }

    /// The artifact of this kind and name.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none; [`Error::Manifest`].
    pub fn open(&self, kind: Kind, name: &str) -> Result<Artifact, Error> {
        check_name(name)?;
        let path = self.path(kind, name);
        let replaced = self.replaced(kind, name);
        if !path.exists() && replaced.exists() {
            // A kill came between the two renames of `finish`: the old artifact is still whole.
            fs::rename(&replaced, &path).map_err(io("restore", &path))?;
        }
        Ok(Artifact { manifest: Manifest::read(&path)?, path })
    }

    /// Whether the artifact exists and was made by this recipe.
    pub fn is_fresh(&self, kind: Kind, name: &str, recipe: &Recipe) -> bool {
        self.open(kind, name).is_ok_and(|artifact| artifact.manifest.recipe == *recipe)
    }

    /// All finished artifacts of a kind, by name.
    pub fn list(&self, kind: Kind) -> Vec<Artifact> {
        let Ok(entries) = fs::read_dir(self.root.join(kind.folder())) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names.iter().filter_map(|name| self.open(kind, name).ok()).collect()
    }

    /// Begins an artifact, or goes on with the draft that an earlier run with the same recipe
    /// left. Drafts of the same name by other recipes are removed.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process works on it; [`Error::Name`]; [`Error::Io`].
    pub fn begin(&self, kind: Kind, name: &str, recipe: Recipe) -> Result<Draft, Error> {
        check_name(name)?;
        let partial = self.root.join(".partial");
        fs::create_dir_all(&partial).map_err(io("create", &partial))?;
        let stem = format!("{}-{name}-", kind.folder());
        let lock_path = partial.join(format!("{stem}lock"));
        let lock = File::create(&lock_path).map_err(io("create", &lock_path))?;
        if lock.try_lock().is_err() {
            return Err(Error::Busy { path: self.path(kind, name) });
        }
        let folder = partial.join(format!("{stem}{}", recipe.key().short()));
        for entry in fs::read_dir(&partial).map_err(io("list", &partial))?.flatten() {
            let path = entry.path();
            let file_name = entry.file_name();
            let key = file_name.to_str().and_then(|n| n.strip_prefix(&stem)).unwrap_or("lock");
            // A key is 16 hexadecimal characters; a longer rest is another artifact's name.
            if path != folder && key.len() == 16 && key.bytes().all(|b| b.is_ascii_hexdigit()) {
                fs::remove_dir_all(&path).map_err(io("remove", &path))?;
            }
        }
        let resumed = folder.is_dir();
        fs::create_dir_all(&folder).map_err(io("create", &folder))?;
        Ok(Draft {
            target: self.path(kind, name),
            replaced: self.replaced(kind, name),
            folder,
            kind,
            name: name.into(),
            recipe,
            resumed,
            _lock: Lock(lock),
        })
    }

    /// Removes an artifact; none there is no error.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, kind: Kind, name: &str) -> Result<(), Error> {
        check_name(name)?;
        // What `open` would take for the whole artifact goes first; then the artifact is moved
        // away, so that a kill while its files are deleted leaves none that looks whole.
        let replaced = self.replaced(kind, name);
        if replaced.exists() {
            fs::remove_dir_all(&replaced).map_err(io("remove", &replaced))?;
        }
        let path = self.path(kind, name);
        if path.exists() {
            let partial = self.root.join(".partial");
            fs::create_dir_all(&partial).map_err(io("create", &partial))?;
            let removed = partial.join(format!("removed-{}-{name}", kind.folder()));
            if removed.exists() {
                fs::remove_dir_all(&removed).map_err(io("remove", &removed))?;
            }
            fs::rename(&path, &removed).map_err(io("move", &path))?;
            fs::remove_dir_all(&removed).map_err(io("remove", &removed))?;
        }
        Ok(())
    }

    /// What an artifact descends from, depth first.
    ///
    /// # Errors
    /// As [`Workspace::open`].
    pub fn lineage(&self, kind: Kind, name: &str) -> Result<Vec<Link>, Error> {
        let mut links = Vec::new();
        self.descend(&self.open(kind, name)?, 1, &mut links);
        Ok(links)
    }

    fn descend(&self, artifact: &Artifact, depth: usize, links: &mut Vec<Link>) {
        for (name, hash) in &artifact.manifest.recipe.inputs {
            let parent = Kind::ALL.into_iter().find_map(|kind| {
                let rest = name.strip_prefix(kind.folder())?.strip_prefix('/')?;
                self.open(kind, rest).ok()
            });
            let current = match &parent {
                Some(parent) => parent.manifest.hash() == *hash,
                None => Hash::of_file(&self.root.join(name)).is_ok_and(|now| now == *hash),
            };
            links.push(Link { depth, name: name.clone(), hash: hash.clone(), current });
            // Other content under the same name is not what this one was made from; following it
            // could also lead in a circle.
            if let Some(parent) = parent.filter(|_| current) {
                self.descend(&parent, depth + 1, links);
            }
        }
    }

    fn replaced(&self, kind: Kind, name: &str) -> PathBuf {
        self.root.join(".partial").join(format!("replaced-{}-{name}", kind.folder()))
    }
}

impl Artifact {
    /// Compares every file with the manifest.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming the first file that differs.
    pub fn verify(&self) -> Result<(), Error> {
        for (name, entry) in &self.manifest.files {
            let path = self.path.join(name);
            let hash = Hash::of_file(&path)?;
            if hash != entry.hash {
                let detail = format!("hash {} instead of {}", hash.short(), entry.hash.short());
                return Err(Error::Corrupt { path, detail });
            }
        }
        Ok(())
    }
}

/// An artifact in the making: a folder of its own that nobody else reads.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    target: PathBuf,
    replaced: PathBuf,
    kind: Kind,
    name: String,
    recipe: Recipe,
    resumed: bool,
    _lock: Lock,
}

/// Held as long as a draft is worked on. It is given up expressly: a child process that another thread
/// has just started may hold the closed file a moment longer.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Where that fails, closing the file does it.
        let _ = self.0.unlock();
    }
}

impl Draft {
    /// The folder to write into.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file or folder of the draft.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Whether an earlier run left something here.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Removes a working file that the finished artifact shall not hold.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn discard(&self, file: &str) -> Result<(), Error> {
        let path = self.path(file);
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Writes the manifest and moves the folder to its name, replacing an older artifact.
    ///
    /// # Errors
    /// [`Error::Io`]; the draft then stays and can be finished by another run.
    pub fn finish(self, counts: BTreeMap<String, u64>) -> Result<Artifact, Error> {
        let mut files = BTreeMap::new();
        collect(&self.folder, &self.folder, &mut files)?;
        let manifest = Manifest {
            kind: self.kind.folder().into(),
            name: self.name.clone(),
            recipe: self.recipe.clone(),
            tool_version: env!("CARGO_PKG_VERSION").into(),
            counts,
            files,
        };
        let path = self.folder.join(Manifest::FILE);
        let text = serde_json::to_string_pretty(&manifest).expect("a manifest is plain data");
        fs::write(&path, text + "\n").map_err(io("write", &path))?;
        sync(&path)?;
        sync(&self.folder)?;
        if let Some(parent) = self.target.parent() {
            fs::create_dir_all(parent).map_err(io("create", parent))?;
        }
        if self.target.exists() {
            if self.replaced.exists() {
                fs::remove_dir_all(&self.replaced).map_err(io("remove", &self.replaced))?;
            }
            fs::rename(&self.target, &self.replaced).map_err(io("move", &self.target))?;
        }
        fs::rename(&self.folder, &self.target).map_err(io("move", &self.folder))?;
        if let Some(parent) = self.target.parent() {
            sync(parent)?;
        }
        if self.replaced.exists() {
            fs::remove_dir_all(&self.replaced).map_err(io("remove", &self.replaced))?;
        }
        Ok(Artifact { path: self.target.clone(), manifest })
    }
}

fn collect(
    root: &Path,
    folder: &Path,
    files: &mut BTreeMap<String, FileEntry>,
) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(io("list", folder))? {
        let path = entry.map_err(io("list", folder))?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
            continue;
        }
        let name =
            path.strip_prefix(root).expect("listed below the root").to_string_lossy().into_owned();
        if name == Manifest::FILE {
            continue;
        }
        sync(&path)?;
        let bytes = fs::metadata(&path).map_err(io("measure", &path))?.len();
        files.insert(name, FileEntry { bytes, hash: Hash::of_file(&path)? });
    }
    Ok(())
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io("sync", path))
}

/// Names become folder names, so they stay portable and cannot leave the workspace.
fn check_name(name: &str) -> Result<(), Error> {
    let reason = if name.is_empty() || name.len() > 100 {
        "must have 1 to 100 characters"
    } else if name.starts_with(['.', '-']) {
        "must not start with a dot or a dash"
    } else if !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        "may hold letters, digits, '.', '_' and '-' only"
    } else {
        return Ok(());
    };
    Err(Error::Name { name: name.into(), reason })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn workspace(name: &str) -> (Folder, Workspace) {
        let root = std::env::temp_dir().join(format!("artel-store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        (Folder(root.clone()), Workspace::at(root))
    }

    fn recipe(seed: u64) -> Recipe {
        Recipe { inputs: BTreeMap::new(), config: json!({ "width": 64 }), seed }
    }

    fn make(workspace: &Workspace, name: &str, recipe: Recipe, text: &str) -> Artifact {
        let draft = workspace.begin(Kind::Collection, name, recipe).unwrap();
        fs::write(draft.path("text"), text).unwrap();
        draft.finish(BTreeMap::from([("documents".into(), 1)])).unwrap()
    }

    #[test]
    fn an_artifact_appears_whole_and_is_fresh_for_its_recipe_only() {
        let (_folder, workspace) = workspace("whole");
        let draft = workspace.begin(Kind::Collection, "docs", recipe(1)).unwrap();
        fs::create_dir(draft.path("sub")).unwrap();
        fs::write(draft.path("sub/text"), "x").unwrap();
        assert!(workspace.open(Kind::Collection, "docs").is_err());
        let made = draft.finish(BTreeMap::new()).unwrap();
        assert_eq!(made.manifest, workspace.open(Kind::Collection, "docs").unwrap().manifest);
        assert!(made.manifest.files.contains_key("sub/text"));
        assert!(workspace.is_fresh(Kind::Collection, "docs", &recipe(1)));
        assert!(!workspace.is_fresh(Kind::Collection, "docs", &recipe(2)));
        made.verify().unwrap();
        fs::write(made.path.join("sub/text"), "y").unwrap();
        assert!(matches!(made.verify(), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn a_draft_is_found_again_by_its_recipe_and_removed_by_another() {
        let (_folder, workspace) = workspace("draft");
        let draft = workspace.begin(Kind::Collection, "a", recipe(1)).unwrap();
        assert!(!draft.resumed());
        fs::write(draft.path("half"), "x").unwrap();
        let busy = workspace.begin(Kind::Collection, "a", recipe(1)).unwrap_err();
        assert!(matches!(busy, Error::Busy { .. }), "{busy}");
        // Another artifact whose name begins alike keeps its draft.
        let other = workspace.begin(Kind::Collection, "a-b", recipe(1)).unwrap();
        drop((draft, other));
        assert!(workspace.begin(Kind::Collection, "a", recipe(1)).unwrap().path("half").exists());
        assert!(!workspace.begin(Kind::Collection, "a", recipe(2)).unwrap().resumed());
        assert!(!workspace.begin(Kind::Collection, "a", recipe(1)).unwrap().resumed());
        assert!(workspace.begin(Kind::Collection, "a-b", recipe(1)).unwrap().resumed());
    }

    #[test]
    fn a_kill_between_the_two_renames_loses_nothing() {
        let (_folder, workspace) = workspace("renames");
        let old = make(&workspace, "a", recipe(1), "old");
        fs::rename(&old.path, workspace.replaced(Kind::Collection, "a")).unwrap();
        assert_eq!(workspace.open(Kind::Collection, "a").unwrap().manifest, old.manifest);
        let new = make(&workspace, "a", recipe(2), "new");
        assert_eq!(fs::read_to_string(new.path.join("text")).unwrap(), "new");
    }

    #[test]
    fn what_was_removed_does_not_come_back() {
        let (_folder, workspace) = workspace("removed");
        let old = make(&workspace, "a", recipe(1), "old");
        // As a kill after the second rename of `finish` leaves it.
        fs::rename(&old.path, workspace.replaced(Kind::Collection, "a")).unwrap();
        let draft = workspace.begin(Kind::Collection, "a", recipe(2)).unwrap();
        fs::rename(draft.folder(), workspace.path(Kind::Collection, "a")).unwrap_or_else(|_| {
            fs::create_dir_all(workspace.path(Kind::Collection, "a")).unwrap();
        });
        workspace.remove(Kind::Collection, "a").unwrap();
        let error = workspace.open(Kind::Collection, "a").unwrap_err();
        assert!(matches!(error, Error::Missing { .. }), "{error}");
    }

    #[test]
    fn lineage_follows_what_is_still_there() {
        let (_folder, workspace) = workspace("lineage");
        let docs = make(&workspace, "docs", recipe(1), "x");
        let mut made_from = recipe(1);
        made_from.inputs.insert("collections/docs".into(), docs.manifest.hash());
        workspace.begin(Kind::Expert, "e", made_from).unwrap().finish(BTreeMap::new()).unwrap();
        let current = |w: &Workspace| w.lineage(Kind::Expert, "e").unwrap()[0].current;
        assert!(current(&workspace));
        make(&workspace, "docs", recipe(2), "y");
        assert!(!current(&workspace));
        // An artifact that names itself among its inputs, by an earlier content.
        let mut circle = recipe(1);
        circle.inputs.insert("experts/e".into(), Hash::of(b"earlier"));
        workspace.begin(Kind::Expert, "e", circle).unwrap().finish(BTreeMap::new()).unwrap();
        assert_eq!(workspace.lineage(Kind::Expert, "e").unwrap().len(), 1);
    }

    #[test]
    fn names_stay_in_the_workspace() {
        let (_folder, workspace) = workspace("names");
        for name in ["", "..", "../x", "a/b", "-x", ".x", "a b", "ä", &"x".repeat(101)] {
            let error = workspace.begin(Kind::Model, name, recipe(1)).unwrap_err();
            assert!(matches!(error, Error::Name { .. }), "{name:?}: {error}");
            assert!(workspace.open(Kind::Model, name).is_err());
            assert!(workspace.remove(Kind::Model, name).is_err());
        }
    }
}
