//! What the binary says of mistakes: snapshots of whole runs.

use insta::assert_snapshot;

use crate::company::Company;

const VALID: &str =
    "name = \"acme\"\nbase.model = \"tiny\"\n\n[departments.press]\ndocuments = [\"documents\"]\n";

fn run_on(toml: &str, args: &[&str]) -> String {
    let company = Company::with_toml(toml);
    company.transcript(&company.run(args))
}

#[test]
fn configuration() {
    let check = |name: &str, extra: &str| {
        assert_snapshot!(name, run_on(&format!("{VALID}{extra}"), &["status"]));
    };
    check("unknown_key", "document = [\"x\"]\n");
    check("unknown_section_key", "\n[train]\nwidht = 4 # typing error\n");
    check("wrong_type", "held_out_fraction = \"a tenth\"\n");
    check("two_ways_to_hold_out", "held_out = [\"a\"]\nheld_out_fraction = 0.1\n");
    check("fraction_out_of_range", "held_out_fraction = 0.9\n");
    check("questions_among_documents", "questions = \"documents/q/press.jsonl\"\n");
    check("impossible_option", "\n[train]\nlearning_rate = 3.0\n");
    check("key_without_hash", "\n[[serve.keys]]\nname = \"a\"\nhash = \"12\"\nexperts = []\n");
    check(
        "key_for_no_department",
        &format!(
            "\n[[serve.keys]]\nname = \"a\"\nhash = \"{}\"\nexperts = [\"kiln\"]\n",
            "0".repeat(64)
        ),
    );
    check("half_a_certificate", "\n[serve]\ntls_key = \"key.pem\"\n");
    check("bad_address", "\n[serve]\nlisten = \"8080\"\n");
    check("local_teacher_with_key", "\n[teacher]\nmodel = \"m\"\napi_key_env = \"K\"\n");
}

#[test]
fn new_and_status() {
    let company = Company::empty();
    let transcript = |args: &[&str]| company.transcript(&company.run(args));
    assert_snapshot!("new", transcript(&["new", "acme", "--departments", "press,kiln"]));
    assert_snapshot!("new_again", transcript(&["new", "acme"]));
    assert_snapshot!("new_with_bad_name", transcript(&["new", "../acme"]));
    assert_snapshot!("status_of_new", transcript(&["-C", "acme", "status"]));
    assert_snapshot!("run_without_base", transcript(&["-C", "acme", "run"]));
    assert_snapshot!("no_configuration", transcript(&["status"]));
    let args = ["-C", "acme", "status", "--lineage", "press"];
    assert_snapshot!("lineage_of_nothing", transcript(&args));
}

#[test]
fn documents() {
    assert_snapshot!("folder_missing", run_on(VALID, &["ingest"]));
    let company = Company::with_toml(VALID);
    let transcript = |args: &[&str]| company.transcript(&company.run(args));
    std::fs::create_dir(company.path("documents")).unwrap();
    assert_snapshot!("folder_empty", transcript(&["ingest"]));
    assert_snapshot!("no_such_department", transcript(&["ingest", "kiln"]));
    company.write("documents/broken.pdf", "%PDF-1.7\nthis is not one");
    company.write("documents/binary.txt", [0u8, 159, 146, 150, 0, 1, 2, 3]);
    assert_snapshot!("only_broken_files", transcript(&["ingest"]));
    assert_snapshot!("synth_before_ingest", transcript(&["synth"]));
}

#[test]
fn models() {
    let company = Company::with_toml(VALID);
    let transcript = |args: &[&str]| company.transcript(&company.run(args));
    assert_snapshot!("pull_of_nothing", transcript(&["pull", "no such model"]));
    company.write("wrong.gguf", "GGML, not GGUF");
    assert_snapshot!("pull_of_wrong_magic", transcript(&["pull", "wrong.gguf"]));
    company.write("cut.gguf", [b"GGUF\x03\0\0\0".as_slice(), &[9; 7]].concat());
    assert_snapshot!("pull_of_cut_file", transcript(&["pull", "cut.gguf"]));
    assert!(!company.path("models/wrong").exists() && !company.path("models/cut").exists());
    company.write("folder/notes.txt", "no model");
    assert_snapshot!("pull_of_other_folder", transcript(&["pull", "folder"]));
    assert_snapshot!("chat_without_model", transcript(&["chat"]));
    assert_snapshot!("forget_the_only_one", transcript(&["forget", "press"]));
    let mut offline = company.command(&["pull", "smollm2-135m-instruct"]);
    let output = offline.env("PATH", "").output().unwrap();
    assert_snapshot!("pull_without_pip", company.transcript(&output));
}

#[test]
fn wrong_usage_has_exit_code_2() {
    let company = Company::with_toml(VALID);
    for args in [&["ingets"][..], &["run", "--jsn"], &["key", "new", "anna"], &["--threads", "0"]] {
        assert_eq!(company.run(args).status.code(), Some(2), "{args:?}");
    }
}
