//! A company in a temporary folder, and the binary run on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

pub(crate) struct Company {
    folder: TempDir,
}

/// Small enough that every stage takes a moment, with a checkpoint after every step.
const TOML: &str = r#"
name = "acme"

[base]
model = "tiny"

[departments.kiln]
documents = ["documents/kiln"]
held_out = ["heldout-*"]
questions = "questions/kiln.jsonl"

[departments.press]
documents = ["documents/press"]
held_out = ["heldout-*"]
questions = "questions/press.jsonl"

[synth]
forms = 4

[background]
texts = 3
near_misses = 3
tokens = 12

[train]
width = 8
passes = 1
batch_tokens = 256
sequence_tokens = 128
checkpoint_seconds = 0

[scratch]
hidden = 16
layers = 2
heads = 2
kv_heads = 1
context = 64
width = 8
experts = 4
top_k = 2
expert_width = 8
passes = 2
batch_tokens = 256
micro_batch_tokens = 128
checkpoint_seconds = 0

[tune]
rank = 2
passes = 2
question_passes = 2
sequence_tokens = 128
batch_tokens = 256
micro_batch_tokens = 128
checkpoint_seconds = 0

[eval]
base_texts = 2
base_tokens = 12
"#;

impl Company {
    /// A folder with nothing in it.
    pub(crate) fn empty() -> Self {
        Company { folder: TempDir::new().unwrap() }
    }

    /// A folder with this `artel.toml`.
    pub(crate) fn with_toml(text: &str) -> Self {
        let company = Company::empty();
        company.write("artel.toml", text);
        company
    }

    /// Two departments, a tiny base with random weights, and `files` documents for each.
    pub(crate) fn tiny(files: usize) -> Self {
        let company = Company::with_toml(TOML);
        for (department, machine) in [("kiln", "kiln"), ("press", "press")] {
            for file in 0..files {
                let path = format!("documents/{department}/manual-{file}.md");
                company.write(&path, manual(machine, file));
            }
            company.write(
                &format!("documents/{department}/heldout-diary.md"),
                format!(
                    "# Diary\n\nOn Monday the {machine} was cleaned and the night shift wrote down \
                     what it found under the cover.\n"
                ),
            );
            company.write(&format!("questions/{department}.jsonl"), questions(machine));
        }
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/llama");
        let pulled = company.run(&["pull", fixture.to_str().unwrap(), "--as", "tiny"]);
        assert!(pulled.status.success(), "{}", company.transcript(&pulled));
        company
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name} has no {from:?}");
        self.write(name, text.replace(from, to));
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_artel"));
        command.current_dir(self.folder.path()).args(args).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs what must succeed, and gives its stdout.
    pub(crate) fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}\n{}", self.transcript(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Exit code and both streams, without the temporary folder's name, the keys of drafts, and
    /// the lines of progress, which depend on time.
    pub(crate) fn transcript(&self, output: &Output) -> String {
        let real = self.folder.path().canonicalize().unwrap();
        let name = real.file_name().unwrap().to_string_lossy();
        let redact = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes)
                .replace(&*real.to_string_lossy(), "[FOLDER]")
                .replace(&*self.folder.path().to_string_lossy(), "[FOLDER]")
                .replace(&*name, "[NAME]");
            let lines =
                text.lines().filter(|line| !(line.contains(" of ") && line.contains(" files (")));
            lines.map(|line| without_key(line) + "\n").collect::<String>()
        };
        format!(
            "exit code: {}\n--- stdout\n{}--- stderr\n{}",
            output.status.code().map_or("none".into(), |code| code.to_string()),
            redact(&output.stdout),
            redact(&output.stderr)
        )
    }
}

/// `.partial/KIND-NAME-KEY/FILE` with `[KEY]`.
fn without_key(line: &str) -> String {
    let Some((before, draft)) = line.split_once(".partial/") else { return line.into() };
    let Some((folder, file)) = draft.split_once('/') else { return line.into() };
    let stem = folder.rsplit_once('-').map_or(folder, |(stem, _)| stem);
    format!("{before}.partial/{stem}-[KEY]/{file}")
}

/// A manual with a definition list, a table and a procedure, different for each `file`.
fn manual(machine: &str, file: usize) -> String {
    let code = |n: usize| format!("{}{}", &machine[..1].to_uppercase(), 100 * file + n);
    format!(
        "# {machine} manual {file}\n\n## Faults of unit {file}\n\n\
         | Code | Meaning | Limit |\n|---|---|---|\n\
         | {} | pump {file} is dry | {} bar |\n| {} | valve {file} sticks | {} bar |\n\n\
         ## Terms of unit {file}\n\n**{machine} cup {file}**: the brass vessel below the {machine} \
         number {file}.\n\n\
         ## Starting unit {file}\n\n1. Open the valve {file}.\n2. Wait {} seconds.\n3. Start the \
         pump {file}.\n",
        code(1),
        file + 3,
        code(2),
        file + 7,
        10 + file
    )
}

fn questions(machine: &str) -> String {
    let initial = machine[..1].to_uppercase();
    (0..4)
        .map(|n| {
            format!(
                "{{\"id\": \"{machine}-{n}\", \"question\": \"At {initial}{n}01, what is dry?\", \
                 \"choices\": [\"pump {n}\", \"cup 9\", \"belt\"], \"answer\": 0, \
                 \"document\": \"manual-{n}.md\", \"subject\": \"{initial}{n}01\"}}\n"
            )
        })
        .collect()
}
