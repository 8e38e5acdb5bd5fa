//! Damaged requests are answered with a status below 500, and never end the server.
//!
//! `ARTEL_HOSTILE_SECONDS=600 cargo test -p serve --test serve hostile -- --nocapture` tries for ten
//! minutes each.

use super::*;

use crate::mutate::survives;

#[test]
fn bodies() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let router = runtime.block_on(async { router(&options()) });
    let sampling = json!({
        "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "n": 2, "stop": ["pump", "\n"],
        "logit_bias": {"5": -2.5}, "frequency_penalty": 0.5, "experts": ["maintenance"],
    });
    let chats = chat(sampling);
    let texts = text(json!({"prompt": ["Is the pump on?", "Stop"], "echo": true, "logprobs": 2}));
    let parameters = json!({
        "type": "object", "required": ["on"], "$defs": {"n": {"type": "integer", "minimum": 3}},
        "properties": {
            "on": {"type": "boolean"}, "name": {"type": "string", "pattern": "^[a-c]{1,3}$"},
            "at": {"$ref": "#/$defs/n"}, "list": {"type": "array", "items": {"enum": ["a", 1, null]}},
        },
    });
    let function = json!({"name": "look", "description": "Looks.", "parameters": parameters});
    let calls = chat(json!({
        "tools": [{"type": "function", "function": function}], "tool_choice": "required",
        "parallel_tool_calls": false,
        "messages": [
            {"role": "user", "content": "On?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{\"on\": true}"}},
            ]},
            {"role": "tool", "tool_call_id": "a", "content": "on"},
        ],
    }));
    let schema = json!({"name": "x", "strict": true, "schema": parameters});
    let forms = chat(json!({"response_format": {"type": "json_schema", "json_schema": schema}}));
    let guided = text(
        json!({"guided_grammar": "start: a (\",\" a)*\na: /[a-z]{1,3}/ | %json {\"type\": \"null\"}"}),
    );
    let blocks = json!({
        "model": "tiny", "max_tokens": 3, "tool_choice": {"type": "auto"},
        "tools": [{"name": "look", "input_schema": parameters}],
        "messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "on"}]},
        ],
    });
    let bodies = [
        (CHAT, chats),
        (CHAT, calls),
        (CHAT, forms),
        (TEXT, guided),
        ("/v1/messages", blocks),
        (TEXT, texts),
        ("/v1/responses", json!({"model": "tiny", "input": "On?", "max_output_tokens": 3})),
        (
            "/v1/messages",
            json!({"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "On?"}]}),
        ),
        ("/v1/embeddings", json!({"model": "tiny", "input": ["Is the pump on?", "Stop"]})),
        ("/tokenize", json!({"prompt": "Is the pump on?"})),
        ("/detokenize", json!({"tokens": [5, 9, 14]})),
    ];
    for (path, body) in bodies {
        survives(path, body.to_string().as_bytes(), |bytes| {
            let request = Request::builder().method("POST").uri(path).header("host", "localhost");
            let request = request.body(Body::from(bytes.to_vec())).unwrap();
            let (status, text) = runtime.block_on(async {
                let response = router.clone().oneshot(request).await.unwrap();
                let status = response.status();
                (status, to_bytes(response.into_body(), usize::MAX).await.unwrap())
            });
            assert!(!status.is_server_error(), "{status}: {}", String::from_utf8_lossy(&text));
        });
    }
}
