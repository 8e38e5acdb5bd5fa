//! The endpoint teacher against a server that answers from a script.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use engine::{Endpoint, Sampling, Teacher};
use model::Message;

const ANSWER: &str = r#"{"choices": [{"message": {"role": "assistant", "content": "forty"}}]}"#;

/// Answers one connection after the other with these statuses, headers and bodies; gives what was
/// asked: head and body of each request.
fn script(answers: &[(&str, &str)]) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let answers: Vec<(String, String)> =
        answers.iter().map(|(head, body)| (head.to_string(), body.to_string())).collect();
    let server = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for (head, body) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut request, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                request += &line;
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut content = vec![0; length];
            reader.read_exact(&mut content).unwrap();
            request += &String::from_utf8(content).unwrap();
            asked.push(request);
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            )
            .unwrap();
        }
        asked
    });
    (url, server)
}

fn chat(url: &str) -> Result<String, String> {
    let endpoint = Endpoint::new(url, "big", Some("sk-secret".to_owned())).unwrap();
    assert!(!format!("{endpoint:?}").contains("secret"));
    let messages = [Message { role: "user".into(), content: "How many?".into() }];
    // A seed of 64 bits must arrive as one that every server takes.
    let sampling = Sampling { top_k: 5, seed: (1 << 63) + 9, ..Sampling::greedy() };
    let teacher = Teacher::Endpoint(endpoint);
    assert_eq!(teacher.name(), "big");
    teacher.chat(&messages, sampling, 64).map_err(|error| error.to_string().replace(url, "URL"))
}

#[test]
fn passing_troubles_are_tried_again() {
    let (url, server) = script(&[
        ("503 Service Unavailable\r\nretry-after: 0", ""),
        ("429 Too Many Requests\r\nretry-after: 0", "{\"error\": \"slow down\"}"),
        ("200 OK", ANSWER),
    ]);
    assert_eq!(chat(&url).unwrap(), "forty");
    let asked = server.join().unwrap();
    assert_eq!(asked.len(), 3);
    assert!(asked[2].starts_with("POST /v1/chat/completions "), "{}", asked[2]);
    assert!(asked[2].contains("authorization: Bearer sk-secret"), "{}", asked[2]);
    let body = asked[2].split("\r\n\r\n").last().unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let expected = serde_json::json!({
        "model": "big", "messages": [{"role": "user", "content": "How many?"}],
        "max_tokens": 64, "temperature": 0.0, "seed": 9, "top_k": 5,
    });
    assert_eq!(body, expected);
}

#[test]
fn lasting_troubles_are_named() {
    let once = |head, body| {
        let (url, server) = script(&[(head, body)]);
        let error = chat(&url).unwrap_err();
        server.join().unwrap();
        error
    };
    let gone = {
        let (url, server) = script(&[("503 No\r\nretry-after: 0", "busy"); 5]);
        let error = chat(&url).unwrap_err();
        assert_eq!(server.join().unwrap().len(), 5);
        error
    };
    let errors = [
        once("401 Unauthorized", r#"{"error": {"message": "wrong key sk-secret"}}"#),
        once("302 Found\r\nlocation: http://127.0.0.1:9/", ""),
        once("200 OK", "<html>"),
        once("200 OK", r#"{"choices": []}"#),
        gone,
    ];
    insta::assert_snapshot!(errors.join("\n"), @r#"
    URL/chat/completions answered with status 401: wrong key [API key]
    URL/chat/completions answered with status 302: (no message)
    URL/chat/completions answered something else than a chat completion: not JSON: expected value at line 1 column 1
    URL/chat/completions answered something else than a chat completion: no text in choices[0].message: {"choices": []}
    URL/chat/completions gave no answer after 5 attempts: status 503: busy
    "#);
}

#[test]
fn addresses_are_checked() {
    let refused = ["localhost:8000/v1", "http:///v1", "https://me:password@host/v1"]
        .map(|url| Endpoint::new(url, "big", None).unwrap_err().to_string());
    insta::assert_snapshot!(refused.join("\n"), @r#"
    "localhost:8000/v1" is not the address of an endpoint: it must start with http:// or https://
    "http:///v1" is not the address of an endpoint: it names no host
    "host/v1" is not the address of an endpoint: a user or password in it would show in messages: use the API key
    "#);
}
