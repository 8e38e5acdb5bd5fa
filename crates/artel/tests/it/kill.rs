//! SIGKILL at any moment: what is on disk is whole, and the next run ends where an unbroken one
//! would have.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::company::Company;

/// Runs `args` over and over, killing each run as soon as `marker` has grown in the draft, until
/// one comes through. Gives how many were killed.
fn run_with_kills(
    company: &Company,
    args: &[&str],
    draft: &str,
    marker: &str,
    limit: usize,
) -> usize {
    let mut kills = 0;
    let mut seen = 0;
    while kills < limit {
        let mut child =
            company.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{args:?} failed after {kills} kills");
                return kills;
            }
            let size = size_in_draft(&company.path(".partial"), draft, marker);
            if size > seen {
                seen = size;
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{marker} does not grow");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    company.succeed(args);
    kills
}

fn size_in_draft(partial: &Path, draft: &str, marker: &str) -> u64 {
    let entries = fs::read_dir(partial).into_iter().flatten().flatten();
    let drafts = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(draft));
    let sizes = drafts.filter_map(|entry| fs::metadata(entry.path().join(marker)).ok());
    sizes.map(|metadata| metadata.len()).max().unwrap_or(0)
}

/// All files of an artifact but its manifest and its logs of times.
fn content(folder: PathBuf) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            let inside = content(entry.path()).into_iter();
            files.extend(inside.map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else if name != "manifest.json" && name != "metrics.jsonl" && !name.contains("tfevents") {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

fn check_same(unbroken: &Company, killed: &Company, artifact: &str, kills: usize) {
    assert!(killed.path(artifact).join("manifest.json").exists(), "{artifact} after {kills}");
    let (expected, found) = (content(unbroken.path(artifact)), content(killed.path(artifact)));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&expected), names(&found), "{artifact}");
    for (name, bytes) in &expected {
        assert!(*bytes == found[name], "{artifact}/{name} differs after {kills} kills");
    }
}

#[test]
fn a_killed_model_from_scratch_ends_where_an_unbroken_one_does() {
    let (unbroken, killed) = (Company::tiny(6), Company::tiny(6));
    let args = ["train", "--from", "scratch"];
    for company in [&unbroken, &killed] {
        company.succeed(&["ingest"]);
    }
    unbroken.succeed(&args);
    let kills = run_with_kills(&killed, &args, "models-acme-scratch-", "metrics.jsonl", 3);
    assert!(kills > 0, "training was over before it could be killed");
    check_same(&unbroken, &killed, "models/acme-scratch", kills);
    let lineage = killed.succeed(&["status", "--lineage", "models/acme-scratch"]);
    assert!(lineage.contains("documents/press/manual-0.md"), "{lineage}");
    assert!(!lineage.contains("questions"), "{lineage}");
}

#[test]
fn a_killed_tuning_ends_where_an_unbroken_one_does() {
    let (unbroken, killed) = (Company::tiny(6), Company::tiny(6));
    for company in [&unbroken, &killed] {
        company.succeed(&["ingest"]);
        company.succeed(&["synth"]);
    }
    unbroken.succeed(&["tune"]);
    let kills = run_with_kills(&killed, &["tune"], "models-acme-tuned-", "metrics.jsonl", 3);
    assert!(kills > 0, "training was over before it could be killed");
    check_same(&unbroken, &killed, "models/acme-tuned", kills);
    assert!(killed.path("models/acme-tuned/adapter/adapter_model.safetensors").exists());
    let lineage = killed.succeed(&["status", "--lineage", "models/acme-tuned"]);
    assert!(lineage.contains("documents/press/manual-0.md"), "{lineage}");
    assert!(!lineage.contains("questions"), "{lineage}");
}

#[test]
fn killed_stages_end_where_unbroken_ones_do() {
    let (unbroken, killed) = (Company::tiny(12), Company::tiny(12));
    for (stage, folder, draft, marker) in [
        ("ingest", "collections", "collections-press-", "parsed.jsonl"),
        ("synth", "examples", "examples-press-", "examples.jsonl"),
        ("train", "experts", "experts-press-", "metrics.jsonl"),
    ] {
        let args = [stage, "press"];
        unbroken.succeed(&args);
        let kills = run_with_kills(&killed, &args, draft, marker, 3);
        check_same(&unbroken, &killed, &format!("{folder}/press"), kills);
        if stage == "train" {
            assert!(kills > 0, "training was over before it could be killed");
        }
    }
}

#[test]
fn a_killed_evaluation_goes_on() {
    let company = Company::tiny(2);
    company.succeed(&["run"]);
    company.edit("artel.toml", "base_tokens = 12", "base_tokens = 10");
    run_with_kills(&company, &["eval"], "reports-acme-", "choices-kiln-before.jsonl", 2);
    let again = company.succeed(&["run", "--json"]);
    assert!(again.lines().all(|line| line.contains("\"state\":\"fresh\"")), "{again}");
}
