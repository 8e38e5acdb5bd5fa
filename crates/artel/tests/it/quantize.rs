//! `artel quantize` on a tiny model and a joined one, and a model with a tokenizer of its own.

use serde_json::Value;

use crate::company::Company;

#[test]
fn a_quantised_file_is_reported_and_never_written_over_another() {
    let company = Company::tiny(2);
    let text = "documents/press/manual-0.md";
    let quantize = |mix: &str, to: &str, more: &[&str]| {
        let args = ["quantize", "tiny", "--type", mix, "--to", to, "--text", text, "--json"];
        company.run(&[&args, more].concat())
    };
    let report = |mix: &str, to: &str, more: &[&str]| -> Value {
        let output = quantize(mix, to, more);
        assert!(output.status.success(), "{}", company.transcript(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let divergence = |report: &Value| report["comparison"]["divergence"].as_f64().unwrap();
    let fine = report("q8_0", "files/fine.gguf", &[]);
    let coarse = report("q4_0", "files/coarse.gguf", &[]);
    let weighed = report("q4_0", "files/weighed.gguf", &["--imatrix", text]);
    assert!(divergence(&fine) < divergence(&coarse), "{fine} {coarse}");
    // Of random weights, which nothing holds together.
    assert!(divergence(&fine) > 0.0 && divergence(&coarse) < 0.5, "{fine} {coarse}");
    assert_ne!(divergence(&weighed), divergence(&coarse));
    let bits = |report: &Value| report["bits_per_weight"].as_f64().unwrap();
    assert!(bits(&fine) < 9.0 && bits(&coarse) < bits(&fine), "{fine} {coarse}");

    let again = quantize("q8_0", "files/fine.gguf", &[]);
    assert!(company.transcript(&again).contains("fine.gguf exists; name a new file"));
    let unknown = quantize("q9_0", "files/other.gguf", &[]);
    let said = company.transcript(&unknown);
    assert_eq!(unknown.status.code(), Some(2), "{said}");
    assert!(said.contains("known are f32, bf16, f16, q8_0"), "{said}");
    let left = std::fs::read_dir(company.path("files")).unwrap().count();
    assert_eq!(left, 3, "only whole files stay");
}

#[test]
fn a_joined_model_keeps_its_experts() {
    let company = Company::tiny(2);
    company.succeed(&["run"]);
    let text = "documents/press/manual-0.md";
    let args = ["quantize", "acme", "--type", "q8_0", "--to", "acme.gguf", "--imatrix", text];
    let found = company.succeed(&[&args[..], &["--text", text, "--json"]].concat());
    let found: Value = serde_json::from_str(&found).unwrap();
    assert!(found["comparison"]["divergence"].as_f64().unwrap() < 0.01, "{found}");
    assert!(found["comparison"]["same_best"].as_f64().unwrap() > 0.8, "{found}");
    let source = model::Source::open(&company.path("acme.gguf")).unwrap();
    let experts = source.config().unwrap().experts.unwrap();
    assert_eq!(experts.names, ["kiln", "press"]);
}

#[test]
fn a_model_from_scratch_may_have_a_tokenizer_of_its_own_and_a_limit_of_memory() {
    let company = Company::tiny(3);
    company.edit("artel.toml", "[scratch]\n", "[scratch]\nvocab = 320\nmemory_mb = 1\n");
    company.succeed(&["ingest"]);
    let refused = company.run(&["train", "--from", "scratch"]);
    let said = company.transcript(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("allowed are 1 MiB"), "{said}");
    company.edit("artel.toml", "memory_mb = 1\n", "");
    company.succeed(&["train", "--from", "scratch"]);
    let folder = company.path("models/acme-scratch");
    let model = model::Model::load(&folder, kernel::Precision::F32).unwrap();
    assert_eq!(model.config().vocab, model.tokenizer.vocab());
    assert!(model.tokenizer.vocab() <= 320 && model.tokenizer.vocab() > 258);
    assert!(model.config().eos.iter().all(|end| model.tokenizer.is_special(*end)));
    let events = std::fs::read_dir(&folder).unwrap();
    let names = events.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.contains("tfevents")).count(), 1);
}
