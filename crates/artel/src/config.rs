//! `artel.toml`: read once, checked, and turned into resolved configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use model::KvFormat;
use serde::{Deserialize, Serialize};

use crate::failure::Hint;

/// The file's name in a company's folder.
pub(crate) const FILE: &str = "artel.toml";
/// Experts are a set of 64 bits, one of which stays free for the null expert.
const MAX_DEPARTMENTS: usize = 63;

/// The resolved configuration of one company.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The folder of `artel.toml`, and of all artifacts.
    pub root: PathBuf,
    /// The joined model's name.
    pub name: String,
    /// What `[base] model` says: a name that `artel pull` knows.
    pub base: String,
    /// Added to the seeds of all stages.
    pub seed: u64,
    pub departments: Vec<Department>,
    pub ingest: Ingest,
    pub synth: synth::Options,
    pub teacher: Option<Teacher>,
    pub background: Background,
    pub train: train::Options,
    pub scratch: train::scratch::Options,
    pub tune: train::tune::Options,
    pub eval: Eval,
    pub serve: Serve,
}

/// One department: its documents, its questions, and so its expert.
#[derive(Clone, Debug)]
pub(crate) struct Department {
    pub name: String,
    /// Folders, absolute.
    pub documents: Vec<PathBuf>,
    pub held_out: HeldOut,
    pub questions: Option<PathBuf>,
    /// Its expert is kept out of the joined model, and its stages are not run.
    pub withdrawn: bool,
}

/// Which documents are kept from synthesis and training, to measure on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum HeldOut {
    /// A share of the documents, drawn by seed.
    Fraction(f64),
    /// Those whose path below the documents folder matches one of these patterns.
    Documents(Vec<String>),
}

/// `[ingest]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Ingest {
    pub min_words: Option<u32>,
    pub near_duplicate: Option<f64>,
}

/// `[teacher]`: whom the recipes `qa` and `rephrase` ask.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Teacher {
    /// A model of this workspace, by name.
    Local { model: String },
    /// An OpenAI-compatible endpoint: the one place where a stage may use the network.
    Endpoint { url: String, model: String, api_key_env: Option<String> },
}

/// `[background]`: what the base writes itself, for the gate to learn null on.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Background {
    pub texts: Option<usize>,
    /// Texts in the manner of what a department is asked, for each department.
    pub near_misses: Option<usize>,
    /// Of each text, at most.
    pub tokens: Option<usize>,
}

/// `[eval]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Eval {
    /// Held-out words of each department that are scored.
    pub held_out_words: Option<usize>,
    /// Texts the base writes itself to measure forgetting on, and tokens of each.
    pub base_texts: Option<usize>,
    pub base_tokens: Option<usize>,
}

/// `[serve]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Serve {
    pub listen: SocketAddr,
    /// Most memory for weights, keys and values, in units of 2^20 bytes; 0 for what is free. Experts of the
    /// model's own that go beyond are read from a file when they are needed.
    pub memory_mb: usize,
    /// Memory for keys and values of running requests and kept prompts, in units of 2^20 bytes.
    pub kv_mb: usize,
    pub kv_type: KvType,
    /// Requests that are answered at once; more wait.
    pub running: usize,
    /// Tokens drafted at once from what followed the same words before; 0 for none.
    pub lookup: usize,
    /// The same by the model's own block for the token after the next, where it has one.
    pub mtp: usize,
    /// PEM files of the server's certificate and of its key: with them it speaks HTTPS.
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// Most bytes of a request, in units of 2^20.
    pub body_mb: usize,
    /// Time that a request's body may take to arrive, and its answer to be complete.
    pub body_seconds: u64,
    pub answer_seconds: u64,
    /// Time that running requests have to finish when the server is told to stop.
    pub drain_seconds: u64,
    /// A file that gets a line for each request, without prompts and answers.
    pub audit_log: Option<PathBuf>,
    pub keys: Vec<Key>,
}

impl Default for Serve {
    fn default() -> Self {
        let (limits, requests) = (engine::Limits::default(), serve::Limits::default());
        Serve {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            memory_mb: 0,
            kv_mb: limits.kv_bytes >> 20,
            kv_type: KvType::F16,
            running: limits.running,
            lookup: limits.lookup,
            mtp: limits.mtp,
            tls_certificate: None,
            tls_key: None,
            body_mb: requests.body_bytes >> 20,
            body_seconds: requests.body_time.as_secs(),
            answer_seconds: requests.answer_time.as_secs(),
            drain_seconds: requests.drain.as_secs(),
            audit_log: None,
            keys: Vec::new(),
        }
    }
}

/// How the server and `artel chat` keep keys and values.
#[derive(Clone, Copy, Debug, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KvType {
    F32,
    F16,
    Q8,
}

impl KvType {
    pub(crate) fn format(self) -> KvFormat {
        match self {
            KvType::F32 => KvFormat::F32,
            KvType::F16 => KvFormat::F16,
            KvType::Q8 => KvFormat::Q8,
        }
    }
}

impl Serve {
    /// Bytes of memory for weights: what there is without keys and values.
    pub(crate) fn weights_memory(&self) -> u64 {
        let all = match self.memory_mb {
            0 => kernel::available_memory().unwrap_or(u64::MAX),
            mb => (mb as u64) << 20,
        };
        all.saturating_sub((self.kv_mb as u64) << 20)
    }

    fn check(&self) -> Result<()> {
        let whole = |seconds: u64| usize::try_from(seconds).unwrap_or(usize::MAX);
        for (name, value) in [
            ("running", self.running),
            ("kv_mb", self.kv_mb),
            ("body_mb", self.body_mb),
            ("body_seconds", whole(self.body_seconds)),
            ("answer_seconds", whole(self.answer_seconds)),
        ] {
            ensure!(value > 0, "serve.{name} is 0, it must be at least 1");
        }
        ensure!(
            self.tls_certificate.is_some() == self.tls_key.is_some(),
            "serve.tls_certificate and serve.tls_key belong together: give both"
        );
        Ok(())
    }
}

/// `[[serve.keys]]`: made by `artel key new`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    pub name: String,
    /// The BLAKE3 hash of the secret, in hexadecimal.
    pub hash: String,
    /// The experts its requests may use.
    pub experts: Vec<String>,
    /// Requests in a minute; no limit if none is given.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in a minute.
    pub tokens_per_minute: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: Option<String>,
    #[serde(default)]
    seed: u64,
    base: RawBase,
    #[serde(default)]
    departments: BTreeMap<String, RawDepartment>,
    #[serde(default)]
    ingest: Ingest,
    #[serde(default)]
    synth: synth::Options,
    teacher: Option<RawTeacher>,
    #[serde(default)]
    background: Background,
    #[serde(default)]
    train: train::Options,
    #[serde(default)]
    scratch: train::scratch::Options,
    #[serde(default)]
    tune: train::tune::Options,
    #[serde(default)]
    eval: Eval,
    #[serde(default)]
    serve: Serve,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBase {
    model: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDepartment {
    documents: Vec<PathBuf>,
    held_out: Option<Vec<String>>,
    held_out_fraction: Option<f64>,
    questions: Option<PathBuf>,
    #[serde(default)]
    withdrawn: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTeacher {
    model: String,
    endpoint: Option<String>,
    api_key_env: Option<String>,
}

impl Config {
    /// Reads `folder/artel.toml`.
    pub(crate) fn read(folder: &Path) -> Result<Config> {
        let file = folder.join(FILE);
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("read {}", file.display()))
            .context(Hint::new(
                "`artel new NAME` makes a folder with one; `-C FOLDER` works in another folder",
            ))?;
        let root = std::path::absolute(folder)
            .with_context(|| format!("find the folder {}", folder.display()))?;
        Config::parse(&text, &root).with_context(|| format!("{} is not valid", file.display()))
    }

    /// Resolves the text of an `artel.toml` in the folder `root` (absolute).
    pub(crate) fn parse(text: &str, root: &Path) -> Result<Config> {
        let raw: RawConfig = toml::from_str(text).map_err(|e| syntax(text, &e))?;
        let name = match raw.name {
            Some(name) => name,
            None => default_name(root),
        };
        check_name("name", &name)?;
        ensure!(!raw.base.model.is_empty(), "base.model is empty");
        ensure!(
            raw.departments.len() <= MAX_DEPARTMENTS,
            "{} departments; at most {MAX_DEPARTMENTS} experts can join one model",
            raw.departments.len()
        );
        let departments = raw
            .departments
            .into_iter()
            .map(|(name, raw)| raw.resolve(name, root))
            .collect::<Result<Vec<_>>>()?;
        keep_questions_apart(&departments)?;
        let teacher = raw.teacher.map(RawTeacher::resolve).transpose()?;
        raw.train.check().map_err(|error| anyhow!("[train] {error}"))?;
        raw.scratch.check().map_err(|error| anyhow!("[scratch] {error}"))?;
        raw.tune.check().map_err(|error| anyhow!("[tune] {error}"))?;
        for key in &raw.serve.keys {
            key.check(&departments)?;
        }
        raw.serve.check()?;
        let config = Config {
            root: root.into(),
            name,
            base: raw.base.model,
            seed: raw.seed,
            departments,
            ingest: raw.ingest,
            synth: raw.synth,
            teacher,
            background: raw.background,
            train: raw.train,
            scratch: raw.scratch,
            tune: raw.tune,
            eval: raw.eval,
            serve: raw.serve,
        };
        ensure!(
            config.name != config.base_name(),
            "name {:?} is the base model's name too: the joined model needs its own",
            config.name
        );
        Ok(config)
    }

    /// The base model's name under `models/`.
    pub(crate) fn base_name(&self) -> String {
        local_name(&self.base)
    }

    pub(crate) fn department(&self, name: &str) -> Result<&Department> {
        self.departments.iter().find(|d| d.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.departments.iter().map(|d| d.name.as_str()).collect();
            anyhow!("no department {name:?} in {FILE}")
                .context(Hint::new(format!("departments there: {}", known.join(", "))))
        })
    }

    /// The departments named, or all that are not withdrawn.
    pub(crate) fn select(&self, names: &[String]) -> Result<Vec<&Department>> {
        if names.is_empty() {
            let all: Vec<_> = self.departments.iter().filter(|d| !d.withdrawn).collect();
            ensure!(!all.is_empty(), "{FILE} has no department (or all are withdrawn)");
            return Ok(all);
        }
        names.iter().map(|name| self.department(name)).collect()
    }

    /// A path as artifacts and messages name it: relative to the folder where it is inside.
    pub(crate) fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().into_owned()
    }
}

impl RawDepartment {
    fn resolve(self, name: String, root: &Path) -> Result<Department> {
        check_name("departments", &name)?;
        ensure!(
            !self.documents.is_empty(),
            "departments.{name}.documents is empty; name a folder with its documents"
        );
        let held_out = match (self.held_out, self.held_out_fraction) {
            (Some(_), Some(_)) => {
                bail!("departments.{name} has both held_out and held_out_fraction; keep one")
            }
            (Some(patterns), None) => HeldOut::Documents(patterns),
            (None, fraction) => {
                let fraction = fraction.unwrap_or(0.1);
                ensure!(
                    (0.0..=0.5).contains(&fraction),
                    "departments.{name}.held_out_fraction is {fraction}; it must be 0 to 0.5"
                );
                HeldOut::Fraction(fraction)
            }
        };
        let documents: Vec<PathBuf> = self.documents.iter().map(|p| resolve(root, p)).collect();
        let questions = self.questions.map(|p| resolve(root, &p));
        Ok(Department { name, documents, held_out, questions, withdrawn: self.withdrawn })
    }
}

impl RawTeacher {
    fn resolve(self) -> Result<Teacher> {
        match self.endpoint {
            Some(url) => {
                ensure!(
                    url.starts_with("http://") || url.starts_with("https://"),
                    "teacher.endpoint {url:?} must begin with http:// or https://"
                );
                Ok(Teacher::Endpoint { url, model: self.model, api_key_env: self.api_key_env })
            }
            None if self.api_key_env.is_some() => {
                bail!("teacher.api_key_env without teacher.endpoint: a local model has no key")
            }
            None => Ok(Teacher::Local { model: self.model }),
        }
    }
}

impl Key {
    fn check(&self, departments: &[Department]) -> Result<()> {
        ensure!(
            self.hash.len() == 64 && self.hash.bytes().all(|b| b.is_ascii_hexdigit()),
            "serve.keys {:?}: hash must be 64 hexadecimal digits (`artel key new` prints it)",
            self.name
        );
        for (name, limit) in [
            ("requests_per_minute", self.requests_per_minute),
            ("tokens_per_minute", self.tokens_per_minute),
        ] {
            let key = &self.name;
            ensure!(limit != Some(0), "serve.keys {key:?}: {name} is 0, it must be at least 1");
        }
        for expert in &self.experts {
            ensure!(
                expert == "*" || departments.iter().any(|d| d.name == *expert),
                "serve.keys {:?} names the expert {expert:?}, which is no department",
                self.name
            );
        }
        Ok(())
    }
}

/// Refuses a question file that lies in any department's documents.
fn keep_questions_apart(departments: &[Department]) -> Result<()> {
    for Department { name, questions, .. } in departments {
        let Some(questions) = questions else { continue };
        let mut folders = departments.iter().flat_map(|department| &department.documents);
        if let Some(folder) = folders.find(|folder| questions.starts_with(folder)) {
            bail!(
                "departments.{name}.questions is inside the documents folder {}: \
                 questions must never be trained on",
                folder.display()
            );
        }
    }
    Ok(())
}

/// The name under `models/` of what `artel pull` was asked for: the last part of an id or path.
pub(crate) fn local_name(source: &str) -> String {
    let last = source.trim_end_matches('/').rsplit('/').next().unwrap_or(source);
    let last = last.strip_suffix(".gguf").unwrap_or(last);
    let portable = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    last.chars().map(portable).collect::<String>().trim_start_matches(['.', '-']).to_lowercase()
}

fn default_name(root: &Path) -> String {
    match root.file_name().map(|n| local_name(&n.to_string_lossy())) {
        Some(name) if !name.is_empty() => name,
        _ => "joined".into(),
    }
}

fn resolve(root: &Path, path: &Path) -> PathBuf {
    // `components` drops the `.` and the trailing slashes that people write.
    root.join(path).components().collect()
}

/// Names become folder names and expert names, so they stay portable.
pub(crate) fn check_name(key: &str, name: &str) -> Result<()> {
    let portable = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    ensure!(
        portable && (1..=60).contains(&name.len()) && !name.starts_with(['.', '-']),
        "{key}: the name {name:?} may hold up to 60 letters, digits, '.', '_' and '-', \
         and must begin with a letter or digit"
    );
    Ok(())
}

/// "line 4, `documentz = …`: unknown field `documentz`, expected one of …".
fn syntax(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let message = error.message();
    let Some(span) = error.span() else { return anyhow!("{message}") };
    let start = span.start.min(text.len());
    let line = text.as_bytes()[..start].iter().filter(|&&b| b == b'\n').count();
    let shown = text.lines().nth(line).unwrap_or("");
    let shown = shown.split(" #").next().unwrap_or("").trim();
    anyhow!("line {}, `{shown}`: {message}", line + 1)
}
