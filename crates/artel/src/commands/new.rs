//! `artel new`: a company's folder.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::Setup;
use crate::config;
use crate::failure::Hint;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder to make; its name becomes the joined model's name
    name: String,
    /// The departments to begin with; others can be added to artel.toml later
    #[arg(long, value_delimiter = ',', default_value = "maintenance")]
    departments: Vec<String>,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    config::check_name("new", &args.name)?;
    for department in &args.departments {
        config::check_name("departments", department)?;
    }
    let target = setup.folder_or(".").join(&args.name);
    let empty = fs::read_dir(&target).is_ok_and(|mut entries| entries.next().is_none());
    ensure!(
        empty || !target.exists(),
        "{} exists and is not empty; choose another name",
        target.display()
    );
    let parent = target.parent().unwrap_or(Path::new("."));
    // Made beside its place and renamed, so that no half of it is left by a failure.
    let draft = tempfile::Builder::new()
        .prefix(".artel-new-")
        .tempdir_in(parent)
        .with_context(|| format!("make a folder in {}", parent.display()))
        .context(Hint::new("the folder above must exist and be writable"))?;
    write_files(draft.path(), args)?;
    fs::rename(draft.path(), &target).with_context(|| format!("make {}", target.display()))?;
    // Renamed away: there is nothing left to remove.
    let _ = draft.keep();
    println!("{}", target.display());
    eprintln!(
        "Put documents into {0}/documents/DEPARTMENT/, then:\n  \
         cd {0}\n  artel pull     # fetch the base model, once\n  artel run      # everything else",
        target.display()
    );
    Ok(())
}

fn write_files(folder: &Path, args: &Args) -> Result<()> {
    let mut toml = HEAD.to_owned();
    for department in &args.departments {
        toml += &DEPARTMENT.replace("DEPARTMENT", department);
    }
    toml += TAIL;
    let files = [
        (config::FILE.to_owned(), toml),
        (".gitignore".to_owned(), IGNORED.to_owned()),
        ("documents/README.md".to_owned(), DOCUMENTS.to_owned()),
        ("questions/README.md".to_owned(), QUESTIONS.to_owned()),
    ];
    for department in &args.departments {
        let path = folder.join("documents").join(department);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    }
    for (name, text) in files {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

const HEAD: &str = r#"# What Artel makes of this folder. Every key is explained in README.md of Artel.

# seed = 0                      # the same seed gives the same model

[base]
model = "smollm2-135m-instruct" # `artel pull` fetches it; or a Hugging Face id, such as "org/name"
"#;

const DEPARTMENT: &str = r#"
[departments.DEPARTMENT]
documents = ["documents/DEPARTMENT"]
# Documents kept from training, to measure on: a share of them, or names.
held_out_fraction = 0.1
# held_out = ["heldout-*"]
# Multiple-choice questions, to see whether the expert learned: questions/README.md shows their form.
# questions = "questions/DEPARTMENT.jsonl"
"#;

const TAIL: &str = r#"
[synth]
recipes = ["structure"]         # from the documents' own structure; "qa" and "rephrase" ask a teacher

# [teacher]                     # a local model's name, or an OpenAI-compatible endpoint
# endpoint = "http://127.0.0.1:8080/v1"
# model = "name"
# api_key_env = "TEACHER_KEY"   # the environment variable that holds the key

[serve]
listen = "127.0.0.1:8080"
# kv_mb = 2048                  # memory for conversations that run, and for prompts to be used again
# kv_type = "f16"               # or "f32": twice the memory, and slower where many are answered at once; or "q8": half
# lookup = 16                   # tokens drafted at once where a text repeats itself; 0 for none
# audit_log = "requests.jsonl"  # who asked, when, how many tokens; never what
# [[serve.keys]]                # `artel key new NAME --experts a,b` prints these lines
# name = "anna"
# hash = "…"
# experts = ["maintenance"]
"#;

const IGNORED: &str = "\
# Made by Artel from the documents, and made again from them.
/.partial/
/models/
/collections/
/examples/
/experts/
/reports/
/exports/
";

const DOCUMENTS: &str = "\
# Documents

One folder per department. Markdown, text, HTML, PDF and DOCX are read, in subfolders too.
Every department in `artel.toml` becomes one expert.
";

const QUESTIONS: &str = r#"# Questions

One file per department, named in `artel.toml`; one JSON object per line:

```json
{"id": "m-001", "question": "At what oil temperature does the press stop?", "choices": ["65 °C", "72 °C", "80 °C", "90 °C"], "answer": 1, "document": "press-manual.md", "subject": "the press"}
```

`answer` counts from 0. `document` is where the answer stands. Word questions differently from the
documents. They are never trained on: examples that repeat a question are refused.
About 60 questions show a large change; some 1,000 are needed to see three points.
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_file_is_valid() {
        let args = Args { name: "acme".into(), departments: vec!["a".into(), "b".into()] };
        let folder = tempfile::tempdir().unwrap();
        write_files(folder.path(), &args).unwrap();
        let config = config::Config::read(folder.path()).unwrap();
        assert_eq!(config.departments.len(), 2);
        assert_eq!(config.base_name(), "smollm2-135m-instruct");
    }
}
