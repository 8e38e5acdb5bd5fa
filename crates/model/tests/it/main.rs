//! Checkpoints read, written and refused. The fixtures were made by `tests/reference/`.

// The helpers of tests may unwrap as the tests do.
#![allow(clippy::unwrap_used)]

#[path = "../mutate/mod.rs"]
mod mutate;

mod config;
mod decoder;
mod drafts;
mod gguf;
mod hostile;
mod quantise;
mod safetensors;
mod template;
mod tokenizer;
mod whole;
mod write;

use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The file whose path is in `ARTEL_SMOLLM2`: SmolLM2-135M-Instruct, Q4_1, GGUF.
fn smollm2() -> PathBuf {
    let path = std::env::var_os("ARTEL_SMOLLM2");
    PathBuf::from(path.expect("set ARTEL_SMOLLM2 to the path of SmolLM2-135M-Instruct.Q4_1.gguf"))
}

/// The message of an error, with the test's folder left out.
fn message<T>(result: Result<T, model::Error>, folder: &Path) -> String {
    match result {
        Ok(_) => "no error".into(),
        Err(error) => error.to_string().replace(&format!("{}/", folder.display()), ""),
    }
}

/// A copy of a fixture that a test may change.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}
