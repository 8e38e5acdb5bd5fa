//! The server on a tiny model, without sockets.

// Clippy knows test functions, but not what they call.
#![allow(clippy::unwrap_used)]

mod endpoints;
mod hostile;
#[path = "../../model/tests/mutate/mod.rs"]
mod mutate;
mod structured;
#[path = "../../engine/tests/tiny/mod.rs"]
mod tiny;

use std::collections::BTreeMap;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use engine::Engine;
use kernel::Pool;
use serde_json::{Value, json};
use serve::{Key, Limits, Options};
use tower::ServiceExt;

fn key(name: &str, experts: &[&str]) -> Key {
    Key {
        name: name.into(),
        hash: blake3::hash(format!("secret-{name}").as_bytes()).to_hex().to_string(),
        experts: experts.iter().map(|expert| expert.to_string()).collect(),
        requests_per_minute: None,
        tokens_per_minute: None,
    }
}

fn options() -> Options {
    Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        keys: Vec::new(),
        open: false,
        model_name: "tiny".into(),
        sources: BTreeMap::from([("purchasing".into(), vec!["Suppliers (suppliers.pdf)".into()])]),
        limits: Limits::default(),
        tls: None,
        audit_log: None,
    }
}

/// With the keys `secret-plant`, `secret-office` and `secret-all`.
fn with_keys() -> Options {
    let keys = vec![
        key("plant", &["maintenance"]),
        key("office", &["purchasing"]),
        key("none", &[]),
        key("all", &["*"]),
    ];
    Options { keys, ..options() }
}

fn engine(limits: engine::Limits) -> Engine {
    Engine::start(tiny::model(), Pool::new(1), limits)
}

fn router(options: &Options) -> Router {
    serve::router(engine(engine::Limits::default()), options).unwrap()
}

/// Status, and the body as text.
async fn send(router: &Router, method: &str, path: &str, key: &str, body: &str) -> (u16, String) {
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    if !key.is_empty() {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn post(router: &Router, path: &str, body: Value) -> (u16, Value) {
    post_as(router, path, "", body).await
}

async fn post_as(router: &Router, path: &str, key: &str, body: Value) -> (u16, Value) {
    let (status, text) = send(router, "POST", path, key, &body.to_string()).await;
    (status, serde_json::from_str(&text).unwrap())
}

/// The parts of a stream.
async fn stream(router: &Router, path: &str, body: Value) -> Vec<String> {
    let (status, text) = send(router, "POST", path, "", &body.to_string()).await;
    assert_eq!(status, 200, "{text}");
    text.split("\n\n")
        .filter(|part| !part.is_empty())
        .map(|part| part.strip_prefix("data: ").unwrap().to_owned())
        .collect()
}

/// Ids, times and numbers that depend on rounding, hidden.
fn redacted(mut value: Value) -> String {
    redact(&mut value);
    serde_json::to_string_pretty(&value).unwrap()
}

fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match name.as_str() {
                    "id" | "item_id" if value.as_str().is_some_and(|id| id.contains('-')) => {
                        *value = json!("[id]");
                    }
                    "created" | "created_at" => *value = json!("[time]"),
                    // Which tokens are likeliest may hang on rounding.
                    "top_logprobs" => *value = json!("[top]"),
                    _ => redact(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Number(number) if number.is_f64() => *value = json!("[float]"),
        _ => {}
    }
}

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(more: Value) -> Value {
    let mut body = json!({
        "model": "tiny", "temperature": 0, "max_tokens": 3,
        "messages": [{"role": "user", "content": "Is the pump on?"}],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn text(more: Value) -> Value {
    let mut body = json!({"model": "tiny", "temperature": 0, "max_tokens": 3, "prompt": "abc"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn chat_answers() {
    let router = router(&options());
    let more = json!({
        "logprobs": true, "top_logprobs": 1, "artel": {"token_experts": true}, "max_tokens": 2,
        "user": "someone", "store": false, "metadata": {}, "stream": false, "n": 1,
        "tools": [], "response_format": {"type": "text"}, "stop": null,
        // Always the letter q.
        "logit_bias": {"113": 100},
    });
    let (status, answer) = post(&router, CHAT, chat(more)).await;
    assert_eq!(status, 200, "{answer}");
    insta::assert_snapshot!(redacted(answer));
}

#[tokio::test]
async fn chat_streams() {
    let router = router(&options());
    // Always the letter q.
    let always = json!({"logit_bias": {"113": 100}});
    let mut body = chat(always.clone());
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let mut parts = stream(&router, CHAT, body).await;
    assert_eq!(parts.pop().unwrap(), "[DONE]");
    let parts: Vec<Value> = parts.iter().map(|part| serde_json::from_str(part).unwrap()).collect();
    let (_, whole) = post(&router, CHAT, chat(always)).await;
    let text: String =
        parts.iter().filter_map(|part| part["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"]);
    assert_eq!(parts.last().unwrap()["usage"], whole["usage"]);
    assert_eq!(parts.last().unwrap()["artel"], whole["artel"]);
    insta::assert_snapshot!(redacted(Value::Array(parts)));
}

#[tokio::test]
async fn completions_answer() {
    let router = router(&options());
    // Always the letter q.
    let more = json!({"echo": true, "logprobs": 1, "logit_bias": {"113": 100}});
    let (status, answer) = post(&router, TEXT, text(more)).await;
    assert_eq!(status, 200, "{answer}");
    insta::assert_snapshot!(redacted(answer));
}

#[tokio::test]
async fn prompts_are_scored() {
    let router = router(&options());
    let more = json!({"prompt": "a€c", "echo": true, "logprobs": 2, "max_tokens": 0});
    let (status, answer) = post(&router, TEXT, text(more)).await;
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("a€c"), &json!("length")));
    let logprobs = &choice["logprobs"];
    let tokens = json!(["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "c"]);
    assert_eq!(logprobs["tokens"], tokens);
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 2, 2]));
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    for place in 1..5 {
        let logprob = logprobs["token_logprobs"][place].as_f64().unwrap();
        let top = logprobs["top_logprobs"][place].as_object().unwrap();
        assert!(logprob < 0.0 && (2..=3).contains(&top.len()), "{top:?}");
        assert_eq!(top[tokens[place].as_str().unwrap()], logprobs["token_logprobs"][place]);
        assert!(top.values().all(|other| other.as_f64().unwrap() < 0.0));
    }
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn forms_of_prompts_agree() {
    let router = router(&options());
    let ask = async |prompt: Value| {
        let (status, answer) = post(&router, TEXT, text(json!({"prompt": prompt}))).await;
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let one = ask(json!("abc")).await;
    let same = [json!(["abc"]), json!([97, 98, 99]), json!([[97, 98, 99]])];
    for prompt in same {
        assert_eq!(ask(prompt).await["choices"], one["choices"]);
    }
    let two = ask(json!(["xyz", "abc"])).await;
    assert_eq!(two["choices"][1]["text"], one["choices"][0]["text"]);
    assert_eq!(two["choices"][1]["index"], 1);
    assert_eq!(two["usage"]["prompt_tokens"], 6);
    // An empty prompt is the beginning of a text.
    assert_eq!(ask(json!("")).await["usage"]["prompt_tokens"], 1);
}

#[tokio::test]
async fn streamed_completions_are_the_whole_ones() {
    let router = router(&options());
    let more = json!({"echo": true, "logprobs": 1, "n": 2, "temperature": 1, "seed": 5});
    let (_, whole) = post(&router, TEXT, text(more.clone())).await;
    let mut body = text(more);
    body["stream"] = json!(true);
    let mut parts = stream(&router, TEXT, body).await;
    assert_eq!(parts.pop().unwrap(), "[DONE]");
    let mut texts = [String::new(), String::new()];
    let mut offsets = [Vec::new(), Vec::new()];
    for part in parts {
        let part: Value = serde_json::from_str(&part).unwrap();
        let choice = &part["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index] += choice["text"].as_str().unwrap();
        offsets[index]
            .extend(choice["logprobs"]["text_offset"].as_array().into_iter().flatten().cloned());
    }
    for index in 0..2 {
        let choice = &whole["choices"][index];
        assert_eq!(choice["text"], texts[index]);
        assert_eq!(choice["logprobs"]["text_offset"], json!(offsets[index]));
    }
    assert_ne!(texts[0], texts[1]);
    // The first choice is what n = 1 gives.
    let single = text(json!({"echo": true, "temperature": 1, "seed": 5}));
    assert_eq!(post(&router, TEXT, single).await.1["choices"][0]["text"], texts[0]);
}

#[tokio::test]
async fn wrong_requests_are_named() {
    let router = router(&options());
    let messages = |messages: Value| chat(json!({"messages": messages}));
    let chats = [
        chat(json!({"temprature": 1})),
        chat(json!({"tools": [{"type": "function"}]})),
        chat(json!({"temperature": "hot"})),
        chat(json!({"temperature": -1})),
        chat(json!({"top_p": 0})),
        chat(json!({"max_tokens": 1.5})),
        chat(json!({"max_tokens": -1})),
        chat(json!({"max_tokens": 5, "max_completion_tokens": 6})),
        chat(json!({"n": 0})),
        chat(json!({"stop": 5})),
        chat(json!({"stop": ""})),
        chat(json!({"stream": "yes"})),
        chat(json!({"stream_options": {"include_usage": true}})),
        chat(json!({"stream": true, "stream_options": {"usage": true}})),
        chat(json!({"logit_bias": {"x": 1}})),
        chat(json!({"logit_bias": {"5": "much"}})),
        chat(json!({"logit_bias": {"500": 1}})),
        chat(json!({"top_logprobs": 2})),
        chat(json!({"logprobs": true, "top_logprobs": 21})),
        chat(json!({"model": "gpt-9"})),
        chat(json!({"experts": "maintenance"})),
        chat(json!({"experts": ["alchemy"]})),
        chat(json!({"artel": {"tokens": true}})),
        chat(json!({"top_k": -2})),
        chat(json!({"seed": "x"})),
        chat(json!({"frequency_penalty": 2.5})),
        chat(json!({"repetition_penalty": 0})),
        chat(json!({"min_p": 2})),
        chat(json!({"typical_p": 0.5})),
        chat(json!({"stop": vec!["x"; 17]})),
        messages(Value::Null),
        messages(json!([])),
        messages(json!("hello")),
        messages(json!([{"role": "wizard", "content": "x"}])),
        messages(json!([{"role": "user"}])),
        messages(json!([{"role": "user", "content": 5}])),
        messages(json!([{"role": "user", "content": "x", "mood": "good"}])),
        messages(json!([{"role": "user", "content": [{"type": "image_url"}]}])),
        messages(json!([{"role": "user", "content": "x".repeat(700)}])),
    ];
    let texts = [
        text(json!({"prompt": Value::Null})),
        text(json!({"prompt": 5})),
        text(json!({"prompt": []})),
        text(json!({"prompt": [[]]})),
        text(json!({"prompt": ["x", 5]})),
        text(json!({"prompt": [-1]})),
        text(json!({"prompt": [258]})),
        text(json!({"prompt": "x".repeat(700)})),
        text(json!({"suffix": "x"})),
        text(json!({"best_of": 3})),
        text(json!({"n": 100, "prompt": ["x", "y"]})),
        text(json!({"messages": []})),
    ];
    let all = chats.map(|body| (CHAT, body)).into_iter().chain(texts.map(|body| (TEXT, body)));
    let mut errors = Vec::new();
    for (path, body) in all {
        let (status, answer) = post(&router, path, body).await;
        errors.push(line(status, &answer));
    }
    insta::assert_snapshot!(errors.join("\n"));
}

fn line(status: u16, answer: &Value) -> String {
    let error = &answer["error"];
    let field = |name: &str| error[name].as_str().unwrap_or("-").to_owned();
    format!("{status} {} {} {}: {}", field("type"), field("code"), field("param"), field("message"))
}

#[tokio::test]
async fn broken_requests_are_named() {
    let limits = Limits { body_bytes: 100, ..Limits::default() };
    let router = router(&Options { limits, ..options() });
    let mut errors = Vec::new();
    for (method, path, body) in [
        ("POST", CHAT, "{\"model\": "),
        ("POST", CHAT, ""),
        ("POST", CHAT, "[]"),
        ("POST", CHAT, &"[".repeat(99)),
        ("POST", CHAT, &" ".repeat(101)),
        ("GET", CHAT, ""),
        ("GET", "/v1/nothing", ""),
        ("GET", "/v1/models/gpt-9", ""),
    ] {
        let (status, text) = send(&router, method, path, "", body).await;
        errors.push(line(status, &serde_json::from_str(&text).unwrap()));
    }
    insta::assert_snapshot!(errors.join("\n"));
}

#[tokio::test]
async fn keys_are_needed_where_there_are_some() {
    let router = router(&with_keys());
    for (key, expected) in [("", 401), ("wrong", 401), ("secret-plant", 200), ("secret-none", 200)]
    {
        let (status, answer) = post_as(&router, CHAT, key, chat(json!({}))).await;
        assert_eq!(status, expected, "{answer}");
    }
    let (status, answer) = send(&router, "GET", "/v1/models", "wrong", "").await;
    assert_eq!(status, 401);
    insta::assert_snapshot!(
        line(status, &serde_json::from_str(&answer).unwrap()),
        @"401 authentication_error invalid_api_key -: this API key is not known"
    );
    for path in ["/health", "/", "/metrics", "/openapi.json"] {
        assert_eq!(send(&router, "GET", path, "", "").await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn a_key_never_reaches_another_expert() {
    let router = router(&with_keys());
    // The log-probabilities, which JSON writes exactly, and the names of experts that show.
    let ask = async |key: &str, experts: Value| {
        let body = text(json!({
            "prompt": "the pump", "echo": true, "logprobs": 5, "max_tokens": 9,
            "experts": experts,
        }));
        let (status, answer) = post_as(&router, TEXT, key, body).await;
        let names: Vec<String> = answer["artel"]["experts"]
            .as_object()
            .map(|experts| experts.keys().cloned().collect())
            .unwrap_or_default();
        (status, answer["choices"][0]["logprobs"].clone(), names.join(" "))
    };
    let base = ask("secret-none", Value::Null).await;
    let plant = ask("secret-plant", Value::Null).await;
    let office = ask("secret-office", Value::Null).await;
    let all = ask("secret-all", Value::Null).await;
    assert_eq!([&base.2, &plant.2, &office.2], ["", "maintenance", "purchasing"]);
    assert_eq!(all.2, "maintenance purchasing");
    for (one, other) in [(&base, &plant), (&base, &office), (&plant, &office), (&plant, &all)] {
        assert_ne!(one.1, other.1);
    }
    // Narrowed by the request, to the same as with the narrower key; never widened.
    assert_eq!(ask("secret-all", json!(["maintenance"])).await, plant);
    assert_eq!(ask("secret-all", json!([])).await, base);
    assert_eq!(ask("secret-plant", json!([])).await, base);
    for experts in [json!(["purchasing"]), json!(["maintenance", "purchasing"])] {
        assert_eq!(ask("secret-plant", experts).await.0, 403);
    }
    assert_eq!(ask("secret-none", json!(["maintenance"])).await.0, 403);
    let (_, models) = send(&router, "GET", "/v1/models", "secret-plant", "").await;
    assert!(models.contains("maintenance") && !models.contains("purchasing"), "{models}");
    assert!(!models.contains("suppliers"), "sources of an expert that is not permitted: {models}");
}

#[test]
fn options_are_checked() {
    let start = |options: Options| {
        let engine = engine(engine::Limits::default());
        serve::router(engine, &options).map(|_| ()).map_err(|error| error.to_string())
    };
    let listen = "0.0.0.0:80".parse().unwrap();
    assert_eq!(start(Options { open: true, listen, ..options() }), Ok(()));
    assert_eq!(start(Options { listen, ..with_keys() }), Ok(()));
    let hash = "secret".to_owned();
    let errors = [
        Options { listen, ..options() },
        Options { keys: vec![Key { hash, ..key("plant", &[]) }], ..options() },
        Options { keys: vec![key("plant", &["alchemy"])], ..options() },
    ]
    .map(|options| start(options).unwrap_err());
    insta::assert_snapshot!(errors.join("\n"), @r#"
    0.0.0.0:80 can be reached from other machines, and no key is configured: add a key, listen on 127.0.0.1, or open the server explicitly
    key "plant": its hash is not 64 hexadecimal digits of BLAKE3
    key "plant" permits expert "alchemy", which the model does not have; it has maintenance, purchasing
    "#);
}

#[tokio::test]
async fn other_names_for_this_machine_are_refused() {
    let router = router(&options());
    let request = Request::builder().uri("/v1/models").header("host", "evil.example");
    let request = request.body(Body::empty()).unwrap();
    assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_again() {
    let engine = engine(engine::Limits { running: 1, queued: 2, ..engine::Limits::default() });
    let router = serve::router(engine, &options()).unwrap();
    let body = text(json!({"n": 100, "max_tokens": 300})).to_string();
    let request = Request::post(TEXT).body(Body::from(body)).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["retry-after"], "1");
    // The choices that were accepted before are cancelled.
    while post(&router, TEXT, text(json!({}))).await.0 == 429 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels() {
    let engine = engine(engine::Limits::default());
    let router = serve::router(engine.clone(), &options()).unwrap();
    let body = chat(json!({"stream": true, "max_tokens": 600, "logit_bias": {"257": -100}}));
    let request = Request::post(CHAT).body(Body::from(body.to_string())).unwrap();
    let response = router.oneshot(request).await.unwrap();
    let mut body = response.into_body().into_data_stream();
    futures_util::StreamExt::next(&mut body).await.unwrap().unwrap();
    drop(body);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while engine.load().running > 0 {
        assert!(std::time::Instant::now() < deadline, "the request still runs");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_slow_reader_is_cut_off() {
    let limits = Limits { unread_tokens: 10, ..Limits::default() };
    let engine = engine(engine::Limits::default());
    let router = serve::router(engine.clone(), &Options { limits, ..options() }).unwrap();
    let body = chat(json!({"stream": true, "max_tokens": 600, "logit_bias": {"257": -100}}));
    let request = Request::post(CHAT).body(Body::from(body.to_string())).unwrap();
    let response = router.oneshot(request).await.unwrap();
    while engine.load().running > 0 || engine.load().queued > 0 {
        tokio::task::yield_now().await;
    }
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let last = text.trim_end().lines().last().unwrap();
    assert!(last.contains("slow_reader") && !text.contains("[DONE]"), "{text}");
}

#[tokio::test]
async fn health_and_models() {
    let router = router(&options());
    let (_, health) = send(&router, "GET", "/health", "", "").await;
    insta::assert_snapshot!(health, @r#"{"status":"ok","running":0,"queued":0}"#);
    let (_, models) = send(&router, "GET", "/v1/models", "", "").await;
    insta::assert_snapshot!(redacted(serde_json::from_str(&models).unwrap()));
    assert_eq!(send(&router, "GET", "/v1/models/tiny", "", "").await.0, 200);
}

#[tokio::test]
async fn the_page_brings_everything_along() {
    let (status, page) = send(&router(&options()), "GET", "/", "", "").await;
    assert_eq!(status, 200);
    for outside in ["http://", "https://", "innerHTML", "<link rel=\"stylesheet\"", "src=\""] {
        assert!(!page.contains(outside), "{outside}");
    }
}
