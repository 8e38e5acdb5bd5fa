//! The whole path on a tiny model with random weights.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::company::Company;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn states(lines: &[Value]) -> Vec<(&str, &str)> {
    lines
        .iter()
        .map(|line| (line["artifact"].as_str().unwrap(), line["state"].as_str().unwrap()))
        .collect()
}

#[test]
fn documents_become_a_served_model() {
    let company = Company::tiny(4);
    let artifacts = [
        "collections/kiln",
        "collections/press",
        "examples/kiln",
        "examples/press",
        "examples/_base",
        "examples/_base-kiln",
        "examples/_base-press",
        "experts/kiln",
        "experts/press",
        "models/acme",
        "reports/acme",
    ];
    let first = lines(&company.succeed(&["run", "--json"]));
    assert_eq!(states(&first), artifacts.map(|name| (name, "done")));
    let again = lines(&company.succeed(&["run", "--json"]));
    assert_eq!(states(&again), artifacts.map(|name| (name, "fresh")));

    let report: Value = serde_json::from_str(&company.succeed(&["eval", "--json"])).unwrap();
    let names: Vec<&str> = report["departments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["kiln", "press"]);
    assert!(report["forgetting"]["divergence"]["value"].as_f64().unwrap() >= 0.0);
    assert!(company.path("reports/acme/report.html").exists());

    let lineage = company.succeed(&["status", "--lineage", "models/acme"]);
    assert!(lineage.contains("documents/press/manual-0.md"), "{lineage}");
    assert!(!lineage.contains("questions"), "{lineage}");

    for format in ["hf", "gguf"] {
        let to = format!("out-{format}");
        company.succeed(&["export", "--to", &to, "--format", format, "--dtype", "f32"]);
    }
    assert!(company.path("out-hf/model.safetensors").exists());
    assert!(company.path("out-gguf/acme.gguf").exists());

    serves_with_permissions(&company);
    forgets(&company);
}

/// Keys name experts; a request may use these and no others.
fn serves_with_permissions(company: &Company) {
    let printed = company.succeed(&["key", "new", "anna", "--experts", "press"]);
    let (secret, lines) = printed.split_once("\n\n").unwrap();
    let toml = std::fs::read_to_string(company.path("artel.toml")).unwrap();
    company.write("artel.toml", format!("{toml}\n{lines}"));
    let mut child = company
        .command(&["serve", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut address = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let _server = Server(child);
    let url = format!("{}/v1/completions", address.trim());
    let ask = |key: Option<&str>, experts: &[&str]| {
        let body = json!({
            "model": "acme", "prompt": "P001", "max_tokens": 3, "experts": experts,
        });
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut request = agent.post(&url);
        if let Some(key) = key {
            request = request.header("Authorization", &format!("Bearer {key}"));
        }
        let mut answer = request.send_json(body).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_json::<Value>().unwrap())
    };
    assert_eq!(ask(None, &["press"]).0, 401);
    assert_eq!(ask(Some("artel-other"), &["press"]).0, 401);
    let (status, answer) = ask(Some(secret), &["press"]);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 3, "{answer}");
    let (status, answer) = ask(Some(secret), &["kiln"]);
    assert_eq!(status, 403, "{answer}");
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; the test has failed then anyway.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A withdrawn department answers as the base does; the other one stays as it was.
fn forgets(company: &Company) {
    let others = |report: &Value| report["departments"][0]["answers"].clone();
    let before: Value = serde_json::from_str(&company.succeed(&["eval", "--json"])).unwrap();
    company.succeed(&["forget", "press"]);
    let after: Value = serde_json::from_str(&company.succeed(&["eval", "--json"])).unwrap();
    assert_eq!(after["departments"][0]["name"], "kiln");
    assert_eq!(others(&before)[0]["before"], others(&after)[0]["before"]);
    let lineage = company.succeed(&["status", "--lineage", "models/acme"]);
    assert!(!lineage.contains("experts/press") && lineage.contains("experts/kiln"), "{lineage}");
    let toml = std::fs::read_to_string(company.path("artel.toml")).unwrap();
    assert!(toml.contains("[departments.press]\nwithdrawn = true\n"), "{toml}");
    // On a taken port, so that it ends by itself after it has said this.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = company.run(&["serve", "--listen", &address]);
    let said = company.transcript(&output);
    assert!(said.contains("expert \"press\" is not in this model"), "{said}");
}

#[test]
fn a_changed_document_makes_its_own_department_stale() {
    let company = Company::tiny(2);
    company.succeed(&["ingest"]);
    company.edit("documents/press/manual-1.md", "brass", "steel");
    let status = lines(&company.succeed(&["status", "--json"]));
    let state = |artifact: &str| {
        let line = status.iter().find(|line| line["artifact"] == artifact).unwrap();
        (line["state"].as_str().unwrap(), line["reason"].as_str().unwrap())
    };
    assert_eq!(state("collections/kiln"), ("fresh", ""));
    assert_eq!(state("collections/press"), ("stale", "documents/press/manual-1.md changed"));
    assert_eq!(state("examples/press"), ("missing", ""));
}

#[test]
fn an_example_that_repeats_a_question_is_kept_out_of_training() {
    let company = Company::tiny(2);
    company.succeed(&["ingest", "press"]);
    company.succeed(&["synth", "press"]);
    let examples = std::fs::read_to_string(company.path("examples/press/examples.jsonl")).unwrap();
    let example = lines(&examples)
        .into_iter()
        .find(|example| example["messages"].is_array() && example["verdict"] == "accepted")
        .expect("the recipe makes questions");
    let question = json!({
        "id": "copied", "question": example["messages"][0]["content"], "choices": ["a", "b"],
        "answer": 0, "document": "manual-0.md",
    });
    company.write("questions/press.jsonl", format!("{question}\n"));
    company.succeed(&["train", "press"]);
    let manifest = std::fs::read_to_string(company.path("experts/press/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let left_out = manifest["recipe"]["config"]["left_out"].as_array().unwrap();
    assert!(left_out.contains(&example["id"]), "{left_out:?}");
}
