//! `artel serve` as a process: how it is stopped, and HTTPS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::company::Company;

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`
    address: String,
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_artel"))
            .args(["serve", "--listen", "127.0.0.1:0", "--threads", "1", "--model"])
            .arg(crates().join("model/tests/fixtures/llama"))
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Server { child, address: address.trim().to_owned() }
    }

    fn host(&self) -> &str {
        self.address.split_once("//").unwrap().1
    }

    fn send(&self, body: &Value) -> TcpStream {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.host()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n",
            self.host(),
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        stream
    }

    fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; the test has failed then anyway.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_runs_is_finished_on_sigterm_and_nothing_new_begins() {
    let mut server = Server::start(&[]);
    // As long as the context holds, without the token that ends it.
    let long = json!({
        "prompt": "a", "max_tokens": 250, "stream": true, "n": 20, "temperature": 1,
        "logit_bias": {"2": -100},
    });
    let mut running = server.send(&long);
    let mut first = [0; 1];
    running.read_exact(&mut first).unwrap();
    // Open, but without a request.
    let mut idle = TcpStream::connect(server.host()).unwrap();
    server.terminate();
    let begun = Instant::now();
    while TcpStream::connect(server.host()).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it still listens");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("[DONE]"), "{rest}");
    let ends = rest.matches("\"finish_reason\":\"length\"").count();
    assert_eq!(ends, 20, "{rest}");
    assert_eq!(idle.read(&mut first).unwrap(), 0, "a connection without a request is closed");
    let status = server.child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_certificate_makes_it_https() {
    let fixtures = crates().join("serve/tests/fixtures");
    let file = |name: &str| fixtures.join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (file("certificate.pem"), file("key.pem"));
    let server = Server::start(&["--tls-certificate", &certificate, "--tls-key", &key]);
    assert!(server.address.starts_with("https://"), "{}", server.address);
    let pem = std::fs::read(&certificate).unwrap();
    let trusted = ureq::tls::Certificate::from_pem(&pem).unwrap();
    let roots = ureq::tls::RootCerts::new_with_certs(&[trusted]);
    let tls = ureq::tls::TlsConfig::builder().root_certs(roots).build();
    let agent: ureq::Agent = ureq::Agent::config_builder().tls_config(tls).build().into();
    let body = json!({"prompt": "a", "max_tokens": 3});
    let mut answer =
        agent.post(format!("{}/v1/completions", server.address)).send_json(body).unwrap();
    let answer: Value = answer.body_mut().read_json().unwrap();
    assert_eq!(answer["object"], "text_completion", "{answer}");
    // Who does not know the certificate, or speaks no TLS, gets nothing.
    assert!(ureq::get(format!("{}/health", server.address)).call().is_err());
    assert!(ureq::get(format!("http://{}/health", server.host())).call().is_err());
}

#[test]
fn files_that_are_no_certificate_are_named() {
    let config = crates().join("model/tests/fixtures/llama/config.json");
    let key = crates().join("serve/tests/fixtures/key.pem");
    let output = Command::new(env!("CARGO_BIN_EXE_artel"))
        .args(["serve", "--listen", "127.0.0.1:0", "--model"])
        .arg(crates().join("model/tests/fixtures/llama"))
        .arg("--tls-certificate")
        .arg(&config)
        .arg("--tls-key")
        .arg(&key)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("config.json: it holds no certificate"), "{said}");
}

#[test]
fn weights_beyond_the_memory_are_refused() {
    let company = Company::tiny(1);
    let toml = std::fs::read_to_string(company.path("artel.toml")).unwrap();
    company.write("artel.toml", format!("{toml}\n[serve]\nmemory_mb = 2048\nkv_mb = 2048\n"));
    let refused = company.run(&["serve", "--model", "tiny"]);
    let said = company.transcript(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("its weights take 1 MiB, memory_mb less kv_mb is 0 MiB"), "{said}");
    assert!(said.contains("raise serve.memory_mb, lower serve.kv_mb"), "{said}");
}
