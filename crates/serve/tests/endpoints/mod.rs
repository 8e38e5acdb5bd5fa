//! The endpoints beside completions, and what holds for all of them.

use std::time::Duration;

use super::*;

const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";
const EMBEDDINGS: &str = "/v1/embeddings";

fn message(more: Value) -> Value {
    with(
        json!({
            "model": "tiny", "max_tokens": 4, "temperature": 0, "system": "Be brief.",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Is the pump on?"}]}],
        }),
        more,
    )
}

fn response(more: Value) -> Value {
    with(
        json!({
            "model": "tiny", "max_output_tokens": 4, "temperature": 0, "instructions": "Be brief.",
            "input": "Is the pump on?",
        }),
        more,
    )
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The events of a stream with names, which must be the types of their data.
async fn events(router: &Router, path: &str, body: Value) -> Vec<Value> {
    let (status, text) = send(router, "POST", path, "", &body.to_string()).await;
    assert_eq!(status, 200, "{text}");
    text.split("\n\n")
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (event, data) = part.split_once('\n').unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(event.strip_prefix("event: ").unwrap(), data["type"]);
            data
        })
        .collect()
}

fn joined(events: &[Value], kind: &str, text: impl Fn(&Value) -> &Value) -> String {
    let deltas = events.iter().filter(|event| event["type"] == kind);
    deltas.map(|event| text(event).as_str().unwrap()).collect()
}

/// The answer that a chat with the same messages gets.
async fn chat_answer(router: &Router) -> String {
    let messages = json!([
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is the pump on?"},
    ]);
    let (_, answer) =
        post(router, CHAT, chat(json!({"messages": messages, "max_tokens": 4}))).await;
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn messages_answer_as_chats_do() {
    let router = router(&options());
    let expected = chat_answer(&router).await;
    let (status, answer) = post(&router, MESSAGES, message(json!({}))).await;
    assert_eq!((status, &answer["content"][0]["text"]), (200, &json!(expected)), "{answer}");
    let events = events(&router, MESSAGES, message(json!({"stream": true}))).await;
    let text = joined(&events, "content_block_delta", |event| &event["delta"]["text"]);
    assert_eq!(text, expected);
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let end = &events[events.len() - 2];
    assert_eq!(end["delta"]["stop_reason"], answer["stop_reason"]);
    assert_eq!(end["usage"]["output_tokens"], answer["usage"]["output_tokens"]);

    let (_, counted) = post(
        &router,
        "/v1/messages/count_tokens",
        json!({
            "model": "tiny", "system": "Be brief.",
            "messages": [{"role": "user", "content": "Is the pump on?"}],
        }),
    )
    .await;
    let usage = &answer["usage"];
    let tokens = |name: &str| usage[name].as_u64().unwrap();
    assert!(tokens("cache_read_input_tokens") > 0);
    assert_eq!(counted["input_tokens"], tokens("input_tokens") + tokens("cache_read_input_tokens"));
}

#[tokio::test]
async fn messages_name_the_string_that_stopped_them() {
    let router = router(&options());
    let whole = chat_answer(&router).await;
    let stop: String = whole.chars().skip(1).take(1).collect();
    let body = message(json!({"stop_sequences": ["never", stop]}));
    let (_, answer) = post(&router, MESSAGES, body).await;
    let ends = (&answer["stop_reason"], &answer["stop_sequence"]);
    assert_eq!(ends, (&json!("stop_sequence"), &json!(stop)), "{answer}");
    let (_, answer) = post(&router, MESSAGES, message(json!({"max_tokens": 1}))).await;
    assert_eq!(answer["stop_reason"], "max_tokens");
}

#[tokio::test]
async fn wrong_messages_are_named_in_their_form() {
    let router = router(&with_keys());
    let mut errors = Vec::new();
    for (key, body) in [
        ("", message(json!({}))),
        ("secret-plant", message(json!({"max_tokens": 0}))),
        ("secret-plant", message(json!({"max_tokens": null}))),
        ("secret-plant", message(json!({"tools": [{"type": "web_search", "name": "x"}]}))),
        ("secret-plant", message(json!({"thinking": {"type": "enabled"}}))),
        ("secret-plant", message(json!({"messages": [{"role": "system", "content": "x"}]}))),
        ("secret-plant", message(json!({"n": 2}))),
        ("secret-plant", message(json!({"model": "gpt-9"}))),
        ("secret-plant", message(json!({"experts": ["purchasing"]}))),
    ] {
        let (status, answer) = post_as(&router, MESSAGES, key, body).await;
        let error = &answer["error"];
        assert_eq!(answer["type"], "error");
        errors.push(format!("{status} {} {}", error["type"], error["message"]));
    }
    insta::assert_snapshot!(errors.join("\n"));
    // Anthropic's clients send the key in a header of its own.
    let request = Request::post(MESSAGES).header("x-api-key", "secret-plant");
    let request = request.body(Body::from(message(json!({})).to_string())).unwrap();
    assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn responses_answer_as_chats_do() {
    let router = router(&options());
    let expected = chat_answer(&router).await;
    let (status, answer) = post(&router, RESPONSES, response(json!({}))).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["output"][0]["content"][0]["text"], expected);
    let events = events(&router, RESPONSES, response(json!({"stream": true}))).await;
    let text = joined(&events, "response.output_text.delta", |event| &event["delta"]);
    assert_eq!(text, expected);
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], index);
    }
    let last = events.last().unwrap();
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], expected);
    assert_eq!(events[0]["response"]["id"], last["response"]["id"]);
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    insta::assert_snapshot!(format!("{}\n{}", kinds.join("\n"), redacted(answer)));
}

#[tokio::test]
async fn responses_take_conversations_and_refuse_what_they_cannot() {
    let router = router(&options());
    let conversation = json!([
        {"type": "message", "role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Is the pump on?"}]},
    ]);
    let body = json!({"instructions": null, "input": conversation});
    let (_, answer) = post(&router, RESPONSES, response(body)).await;
    assert_eq!(answer["output"][0]["content"][0]["text"], chat_answer(&router).await);
    let mut errors = Vec::new();
    for more in [
        json!({"input": null}),
        json!({"input": 5}),
        json!({"input": [{"type": "function_call"}]}),
        json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        json!({"previous_response_id": "resp-1"}),
        json!({"tools": [{"type": "web_search"}]}),
        json!({"max_tokens": 5}),
    ] {
        let (status, answer) = post(&router, RESPONSES, response(more)).await;
        errors.push(line(status, &answer));
    }
    insta::assert_snapshot!(errors.join("\n"));
}

#[tokio::test]
async fn embeddings_are_of_length_one_and_each_texts_own() {
    let router = router(&with_keys());
    let embed = async |key: &str, body: Value| {
        let (status, answer) = post_as(&router, EMBEDDINGS, key, body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let long = "The valve is shut before the pump is opened. ".repeat(4);
    let one = embed("secret-plant", json!({"model": "tiny", "input": long})).await;
    let row = one["data"][0]["embedding"].as_array().unwrap();
    let length: f64 = row.iter().map(|value| value.as_f64().unwrap().powi(2)).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    assert_eq!(one["usage"], json!({"prompt_tokens": 180, "total_tokens": 180}));
    // The same bits among others, and when the text was read before.
    let two = embed("secret-plant", json!({"input": ["other", long]})).await;
    assert_eq!(two["data"][1]["embedding"], one["data"][0]["embedding"]);
    assert_ne!(two["data"][0]["embedding"], one["data"][0]["embedding"]);
    let base = embed("secret-none", json!({"input": long})).await;
    assert_ne!(base["data"][0]["embedding"], one["data"][0]["embedding"]);
    let text = embed("secret-none", json!({"input": long, "encoding_format": "base64"})).await;
    // 4 bytes for each of 32 values, 4 characters for 3 bytes.
    assert_eq!(text["data"][0]["embedding"].as_str().unwrap().len(), 172);

    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": "x", "dimensions": 8}), "dimensions"),
        (json!({"input": "x", "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": "x", "stream": true}), "stream"),
    ] {
        let (status, answer) = post_as(&router, EMBEDDINGS, "secret-none", body).await;
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some(param)));
    }
}

#[tokio::test]
async fn texts_become_tokens_and_tokens_texts() {
    let router = router(&options());
    let (_, answer) =
        post(&router, "/tokenize", json!({"content": "a€", "with_pieces": true})).await;
    assert_eq!(answer["count"], 4);
    assert_eq!(answer["tokens"][0], json!({"id": 97, "piece": "a"}));
    assert_eq!(answer["tokens"][1], json!({"id": 226, "piece": [226]}));
    let messages = json!([{"role": "user", "content": "on?"}]);
    let (_, chat) = post(&router, "/tokenize", json!({"messages": messages})).await;
    let body = json!({"messages": messages});
    let (_, template) = post(&router, "/apply-template", body).await;
    assert_eq!(template["prompt"], "<|im_start|>user\non?<|im_end|>\n<|im_start|>assistant\n");
    let (_, text) = post(&router, "/detokenize", json!({"tokens": chat["tokens"]})).await;
    assert_eq!(text["content"], template["prompt"]);
    for (path, body) in [
        ("/tokenize", json!({})),
        ("/tokenize", json!({"content": "x", "messages": messages})),
        ("/tokenize", json!({"content": "x", "add_special": true})),
        ("/detokenize", json!({"tokens": [258]})),
        ("/detokenize", json!({"tokens": "x"})),
        ("/apply-template", json!({"messages": messages, "tools": [1]})),
    ] {
        assert_eq!(post(&router, path, body).await.0, 400, "{path}");
    }
}

#[tokio::test]
async fn the_next_turn_reuses_the_answer_with_the_same_experts_only() {
    let limits = engine::Limits { answers: engine::Answers::ReadAgain, ..Default::default() };
    let engine = engine(limits);
    let router = serve::router(engine.clone(), &with_keys()).unwrap();
    let question = json!({"role": "user", "content": "Is the pump of the third line on?"});
    let fields = json!({"max_tokens": 100, "logit_bias": {"113": 100}});
    let mut body = chat(fields.clone());
    body["messages"] = json!([question]);
    let (status, first) = post_as(&router, CHAT, "secret-plant", body.clone()).await;
    assert_eq!(status, 200, "{first}");
    while engine.load().running + engine.load().unread_answers > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let answer = &first["choices"][0]["message"]["content"];
    assert_eq!(answer.as_str(), Some("q".repeat(100).as_str()));
    let next = json!({"role": "user", "content": "Since when?"});
    body["messages"] = json!([question, {"role": "assistant", "content": answer}, next]);
    // Of 52 tokens of the question and 100 of the answer the full pages.
    for (key, cached) in [("secret-office", 0), ("secret-none", 0), ("secret-plant", 128)] {
        let (_, second) = post_as(&router, CHAT, key, body.clone()).await;
        assert_eq!(second["usage"]["prompt_tokens_details"]["cached_tokens"], cached, "{key}");
    }
}

#[tokio::test]
async fn metrics_count_what_was_answered() {
    let router = router(&options());
    let messages = json!([{"role": "user", "content": "Is the pump of the third line on?"}]);
    let always = json!({"logit_bias": {"113": 100}, "messages": messages});
    for _ in 0..2 {
        assert_eq!(post(&router, CHAT, chat(always.clone())).await.0, 200);
    }
    assert_eq!(post(&router, CHAT, chat(json!({"n": 0}))).await.0, 400);
    // An answer is whole a moment before its request has left the batch.
    let mut page = String::new();
    for _ in 0..500 {
        let (status, text) = send(&router, "GET", "/metrics", "", "").await;
        assert_eq!(status, 200);
        page = text;
        if page.lines().any(|line| line == "artel_requests_running 0") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for line in [
        "vllm:num_requests_running{model_name=\"tiny\"} 0",
        "vllm:num_requests_waiting{model_name=\"tiny\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"tiny\"} 0",
        "vllm:cache_config_info{block_size=\"32\",num_gpu_blocks=\"262144\"} 1",
        "artel_generation_tokens_total 6",
        "artel_reused_tokens_total 32",
        "artel_requests_total{endpoint=\"/v1/chat/completions\",status=\"200\"} 2",
        "artel_requests_total{endpoint=\"/v1/chat/completions\",status=\"400\"} 1",
        "artel_time_to_first_token_seconds_count 2",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    for name in [
        "artel_drafted_tokens_total",
        "artel_accepted_tokens_total",
        "vllm:spec_decode_num_drafts_total{model_name=\"tiny\"}",
        "vllm:spec_decode_num_draft_tokens_total{model_name=\"tiny\"}",
        "vllm:spec_decode_num_accepted_tokens_total{model_name=\"tiny\"}",
    ] {
        let count = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        assert!(count.is_some_and(|count: f64| count >= 0.0), "{name} is not in\n{page}");
    }
    // Each name is explained once, before its values.
    let named: Vec<&str> = page.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let mut once = named.clone();
    once.dedup();
    assert_eq!(named, once);
}

#[tokio::test]
async fn the_document_names_routes_that_are_there() {
    let router = router(&options());
    let (_, text) = send(&router, "GET", "/openapi.json", "", "").await;
    let document: Value = serde_json::from_str(&text).unwrap();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let path = path.replace("{model}", "tiny");
            let (status, _) = send(&router, &method.to_uppercase(), &path, "", "{}").await;
            assert!([200, 400].contains(&status), "{method} {path}: {status}");
        }
    }
}

#[tokio::test]
async fn a_key_has_its_limits() {
    let limited = |requests, tokens| {
        let key = Key {
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            ..key("plant", &["maintenance"])
        };
        router(&Options { keys: vec![key, super::key("all", &["*"])], ..options() })
    };
    for (router, answered) in [(limited(Some(2), None), 2), (limited(None, Some(30)), 1)] {
        for index in 0..3 {
            let (status, answer) = post_as(&router, CHAT, "secret-plant", chat(json!({}))).await;
            let expected = if index < answered { 200 } else { 429 };
            assert_eq!(status, expected, "{answer}");
            if expected == 429 {
                assert_eq!(answer["error"]["code"], "rate_limit_exceeded");
            }
        }
        // The others have theirs.
        assert_eq!(post_as(&router, CHAT, "secret-all", chat(json!({}))).await.0, 200);
        assert_eq!(send(&router, "GET", "/v1/models", "secret-plant", "").await.0, 200);
    }
}

#[tokio::test]
async fn the_audit_log_tells_who_and_how_much_but_not_what() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("requests.jsonl");
    let router = router(&Options { audit_log: Some(path.clone()), ..with_keys() });
    let body = chat(json!({"logit_bias": {"113": 100}, "stream": true}));
    send(&router, "POST", CHAT, "secret-plant", &body.to_string()).await;
    post_as(&router, CHAT, "wrong", chat(json!({}))).await;
    let log = std::fs::read_to_string(path).unwrap();
    assert!(!log.contains("pump") && !log.contains("qqq"), "{log}");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named = |name: &str| lines.iter().map(|line| line[name].clone()).collect::<Vec<_>>();
    assert_eq!(named("key"), [json!("plant"), Value::Null]);
    assert_eq!(named("status"), [200, 401]);
    assert_eq!(named("experts"), [json!(["maintenance"]), json!([])]);
    assert_eq!(named("completion_tokens"), [3, 0]);
    assert_eq!(named("endpoint"), [CHAT, CHAT]);
    let missing = Options { audit_log: Some(folder.path().join("none/x")), ..options() };
    assert!(serve::router(engine(engine::Limits::default()), &missing).is_err());
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up() {
    let limits = Limits { answer_time: Duration::ZERO, ..Limits::default() };
    let engine = engine(engine::Limits::default());
    let router = serve::router(engine.clone(), &Options { limits, ..options() }).unwrap();
    let body = chat(json!({"max_tokens": 600, "logit_bias": {"257": -100}}));
    let (status, answer) = post(&router, CHAT, body).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (504, Some("time_limit")));
    while engine.load().running > 0 {
        tokio::task::yield_now().await;
    }
}
