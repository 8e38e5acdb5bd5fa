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
    let bodies = [
        (CHAT, chats),
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
