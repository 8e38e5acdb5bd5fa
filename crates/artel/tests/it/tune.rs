//! `artel tune`, and what is done with a tuned model.

use std::io::Write;
use std::process::Stdio;

use crate::company::Company;

#[test]
fn a_tuned_model_is_used_as_any_other() {
    let company = Company::tiny(3);
    company.succeed(&["ingest"]);
    company.succeed(&["synth"]);
    company.succeed(&["tune"]);
    let status = company.succeed(&["status"]);
    assert!(status.contains("models/acme-tuned            fresh"), "{status}");
    let again = company.run(&["tune"]);
    assert!(company.transcript(&again).contains("fresh"), "{}", company.transcript(&again));
    company.edit("artel.toml", "rank = 2", "rank = 3");
    let status = company.succeed(&["status"]);
    assert!(status.contains("configuration changed: options"), "{status}");
    company.edit("artel.toml", "rank = 3", "rank = 2\nshare = 0.9\nmemory_mb = 4000");
    let status = company.succeed(&["status"]);
    assert!(status.contains("models/acme-tuned            fresh"), "{status}");

    let mut chat = company.command(&["chat", "--model", "acme-tuned", "--max-tokens", "4"]);
    let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"What is dry?\n").unwrap();
    assert!(chat.wait_with_output().unwrap().status.success());

    let report = company.succeed(&["eval", "--model", "acme-tuned", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["before"], &report["after"]), (&"tiny".into(), &"acme-tuned".into()));
    assert_eq!(report["departments"].as_array().unwrap().len(), 2);
    let divergence = report["forgetting"]["divergence"]["value"].as_f64();
    assert!(divergence.is_some_and(|nats| nats > 0.0), "{report}");
    let base = company.transcript(&company.run(&["eval", "--model", "tiny"]));
    assert!(base.contains("tiny is the base"), "{base}");

    company.edit("artel.toml", "model = \"tiny\"", "model = \"acme-tuned\"");
    let refused = company.transcript(&company.run(&["tune"]));
    assert!(refused.contains("which is what tuning would make"), "{refused}");
    company.succeed(&["train", "press"]);
    let lineage = company.succeed(&["status", "--lineage", "experts/press"]);
    assert!(lineage.contains("models/acme-tuned") && lineage.contains("models/tiny"), "{lineage}");
}

#[test]
fn what_the_base_has_not_cannot_be_tuned() {
    let company = Company::tiny(2);
    company.succeed(&["ingest"]);
    let early = company.transcript(&company.run(&["tune"]));
    assert!(early.contains("examples/kiln is needed") && early.contains("artel synth"), "{early}");
    company.succeed(&["synth"]);
    for (value, expected) in [
        ("method = \"experts\"", "option method is experts; the base has no experts of its own"),
        ("targets = [\"c_attn\"]", "option targets is c_attn; the model's matrices are down_proj"),
        ("method = \"full\"\nmemory_mb = 1", "allowed are 1 MiB"),
        ("method = \"lisa\"", "expected one of `full`, `lora`, `experts`"),
        ("rank = 0", "[tune] option rank is 0; use 1 to 4096"),
    ] {
        let kept = std::fs::read_to_string(company.path("artel.toml")).unwrap();
        company.edit("artel.toml", "[tune]\nrank = 2\n", &format!("[tune]\n{value}\n"));
        let refused = company.run(&["tune"]);
        let said = company.transcript(&refused);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
        company.write("artel.toml", kept);
    }
}
