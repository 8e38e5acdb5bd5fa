//! Answers that must be of a form: JSON, grammars, calls of tools. The model's weights are random,
//! so whatever form its answers have comes from the grammar.

use super::*;

/// A small object, on which a random model cannot go on for ever.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "on": {"type": "boolean"},
            "valve": {"enum": ["open", "shut"]},
            "parts": {"type": "array", "items": {"enum": ["V-7", "V-12"]}, "maxItems": 3},
        },
        "required": ["on", "valve", "parts"],
        "additionalProperties": false,
    })
}

fn check_object(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("no JSON: {text:?}"));
    assert!(value["on"].is_boolean(), "{text}");
    assert!(["open", "shut"].map(Value::from).contains(&value["valve"]), "{text}");
    let parts = value["parts"].as_array().unwrap();
    assert!(parts.len() <= 3 && parts.iter().all(|part| part == "V-7" || part == "V-12"), "{text}");
    assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
    value
}

fn json_schema() -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "state", "strict": true, "schema": schema()}})
}

/// What a tool takes; short, as a token is a byte here.
fn parameters() -> Value {
    let on = json!({"type": "boolean"});
    json!({"type": "object", "properties": {"on": on}, "required": ["on"], "additionalProperties": false})
}

fn check_arguments(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("no JSON: {text:?}"));
    assert!(value["on"].is_boolean() && value.as_object().unwrap().len() == 1, "{text}");
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": parameters()}})
}

/// A chat at a temperature, with room for a whole form.
fn free(more: Value) -> Value {
    let mut body = chat(json!({"temperature": 1.0, "max_tokens": 400}));
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn answered(router: &Router, path: &str, body: Value) -> Value {
    let (status, answer) = post(router, path, body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The parts of a streamed chat.
async fn parts(router: &Router, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let mut parts = stream(router, CHAT, body).await;
    assert_eq!(parts.pop().unwrap(), "[DONE]");
    parts.iter().map(|part| serde_json::from_str(part).unwrap()).collect()
}

#[tokio::test]
async fn answers_are_of_their_schema() {
    let router = router(&options());
    for seed in 0..4 {
        let body = free(json!({"response_format": json_schema(), "seed": seed, "n": 2}));
        let answer = answered(&router, CHAT, body.clone()).await;
        for choice in answer["choices"].as_array().unwrap() {
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
            check_object(choice["message"]["content"].as_str().unwrap());
        }
        let mut streamed = [String::new(), String::new()];
        for part in parts(&router, body).await {
            let choice = &part["choices"][0];
            let index = choice["index"].as_u64().unwrap() as usize;
            streamed[index] += choice["delta"]["content"].as_str().unwrap_or_default();
        }
        for index in 0..2 {
            assert_eq!(answer["choices"][index]["message"]["content"], streamed[index]);
        }
    }
}

#[tokio::test]
async fn the_other_ways_to_ask_for_a_form() {
    let router = router(&options());
    for (more, fits) in [
        (json!({"guided_choice": ["open", "shut"]}), r"open|shut"),
        (json!({"guided_regex": "V-[0-9]{2}/[ab]"}), r"V-##/[ab]"),
        (json!({"structured_outputs": {"regex": "(on|off)\nV"}}), "on\nV|off\nV"),
        (json!({"guided_grammar": "start: \"a\" b \"c\"\nb: \"x\" | \"y\""}), "axc|ayc"),
    ] {
        let body = text(json!({"temperature": 1.0, "max_tokens": 50}));
        for (path, mut body) in [(CHAT, free(json!({}))), (TEXT, body)] {
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = answered(&router, path, body).await;
            let choice = &answer["choices"][0];
            let found = choice["text"].as_str().or(choice["message"]["content"].as_str()).unwrap();
            let plain: String =
                found.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
            let plain = plain.replace("/a", "/[ab]").replace("/b", "/[ab]");
            assert!(fits.split('|').any(|fit| fit == plain), "{found:?} is not {fits:?}");
        }
    }
    for more in [
        json!({"guided_json": schema()}),
        json!({"guided_json": schema().to_string()}),
        json!({"structured_outputs": {"json": schema()}}),
    ] {
        let answer = answered(&router, CHAT, free(more)).await;
        check_object(answer["choices"][0]["message"]["content"].as_str().unwrap());
    }
}

#[tokio::test]
async fn a_seed_gives_the_same_whatever_runs_beside_it() {
    let router = router(&options());
    let forms = [
        json!({}),
        json!({"response_format": json_schema()}),
        json!({"top_p": 0.9, "top_k": 40, "min_p": 0.01, "presence_penalty": 0.5}),
        json!({"tools": [tool("look")], "tool_choice": "required", "parallel_tool_calls": false}),
        json!({"repetition_penalty": 1.2, "frequency_penalty": 0.3, "logit_bias": {"97": 2}}),
    ];
    let body = |seed: u64| {
        let mut more = forms[seed as usize % forms.len()].clone();
        more["seed"] = json!(seed);
        more["max_tokens"] = json!(60);
        free(more)
    };
    let said = |mut answer: Value| {
        let mut message = answer["choices"][0]["message"].take();
        // Ids are new each time.
        if let Some(calls) = message.get_mut("tool_calls") {
            calls[0]["id"] = Value::Null;
        }
        message
    };
    let mut alone = Vec::new();
    for seed in 0..10 {
        alone.push(said(answered(&router, CHAT, body(seed)).await));
    }
    let together = (0..10).map(|seed| {
        let (router, body) = (router.clone(), body(seed));
        tokio::spawn(async move { answered(&router, CHAT, body).await })
    });
    for (seed, answer) in together.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(said(answer.await.unwrap()), alone[seed], "seed {seed}");
    }
}

#[tokio::test]
async fn calls_are_forced_and_fit_their_schema() {
    let router = router(&options());
    let tools = json!([tool("look"), tool("shut")]);
    let named = json!({"type": "function", "function": {"name": "shut"}});
    for (choice, parallel, most) in [(json!("required"), false, 1), (named, true, 1)] {
        for seed in 0..4 {
            let body = free(json!({
                "tools": tools, "tool_choice": choice, "seed": seed, "parallel_tool_calls": parallel,
            }));
            let answer = answered(&router, CHAT, body.clone()).await;
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
            assert_eq!(choice["message"]["content"], Value::Null);
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), most);
            let function = &calls[0]["function"];
            if parallel {
                assert_eq!(function["name"], "shut");
            }
            check_arguments(function["arguments"].as_str().unwrap());
            // Streamed, the name comes first and the arguments in parts.
            let (mut name, mut arguments) = (Value::Null, String::new());
            let parts = parts(&router, body).await;
            for part in &parts {
                let delta = &part["choices"][0]["delta"]["tool_calls"][0];
                if delta["id"].is_string() {
                    name = delta["function"]["name"].clone();
                }
                arguments += delta["function"]["arguments"].as_str().unwrap_or_default();
            }
            assert_eq!(name, function["name"]);
            assert_eq!(arguments, function["arguments"].as_str().unwrap());
            assert_eq!(parts.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        }
    }
}

#[tokio::test]
async fn several_calls_are_taken_apart() {
    let router = router(&options());
    // A line's end is likely here, so that a second call follows the first.
    let body = free(json!({
        "tools": [tool("look")], "tool_choice": "required", "max_tokens": 600, "seed": 1,
        "logit_bias": {"10": 60, "257": -60, "9": -60, "32": -60}, "messages": [{"role": "user", "content": "On?"}],
    }));
    let answer = answered(&router, CHAT, body.clone()).await;
    let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().clone();
    assert!(calls.len() > 1, "{answer}");
    // What the length limit cuts off of a call that has not begun stays text.
    let begun = |text: &Value| {
        let text = text.as_str().unwrap_or_default();
        "<tool_call>\n{\"name\": \"look\", \"arguments\":".starts_with(text)
    };
    assert!(begun(&answer["choices"][0]["message"]["content"]), "{answer}");
    for call in &calls[..calls.len() - 1] {
        check_arguments(call["function"]["arguments"].as_str().unwrap());
    }
    let mut names = 0;
    for part in parts(&router, body).await {
        let delta = &part["choices"][0]["delta"];
        assert!(begun(&delta["content"]), "{delta}");
        names += usize::from(delta["tool_calls"][0]["id"].is_string());
    }
    assert_eq!(names, calls.len());
}

#[tokio::test]
async fn calls_in_the_other_forms() {
    let router = router(&options());
    let described = json!({"name": "look", "description": "Looks.", "input_schema": parameters()});
    let body = json!({
        "model": "tiny", "max_tokens": 400, "tools": [described],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
        "messages": [
            {"role": "user", "content": "Is the valve shut?"},
            {"role": "assistant", "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "call_1", "name": "look", "input": {"on": true}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "shut"},
                {"type": "text", "text": "And now?"},
            ]},
        ],
    });
    let answer = answered(&router, "/v1/messages", body).await;
    assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
    let block = &answer["content"][0];
    assert_eq!((&block["type"], &block["name"]), (&json!("tool_use"), &json!("look")));
    check_arguments(&block["input"].to_string());

    let described = json!({"type": "function", "name": "look", "parameters": parameters()});
    let body = json!({
        "model": "tiny", "max_output_tokens": 400, "tools": [described], "tool_choice": "required",
        "parallel_tool_calls": false,
        "input": [
            {"role": "user", "content": "Is the valve shut?"},
            {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "shut"},
        ],
    });
    let answer = answered(&router, "/v1/responses", body).await;
    let item = &answer["output"][0];
    assert_eq!((&item["type"], &item["status"]), (&json!("function_call"), &json!("completed")));
    check_arguments(item["arguments"].as_str().unwrap());
    assert_eq!(answer["tool_choice"], "required");

    let format = json!({"type": "json_schema", "name": "state", "schema": schema()});
    let body = json!({"model": "tiny", "max_output_tokens": 400, "input": "On?", "text": {"format": format}});
    let answer = answered(&router, "/v1/responses", body).await;
    check_object(answer["output"][0]["content"][0]["text"].as_str().unwrap());
}

#[tokio::test]
async fn templates_without_tools_get_them_as_text() {
    let router = router(&options());
    let body = json!({
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "messages": [
            {"role": "user", "content": "On?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{\"x\": 1}"}},
                {"id": "b", "type": "function", "function": {"name": "look", "arguments": ""}},
            ]},
            {"role": "tool", "tool_call_id": "a", "content": "on"},
            {"role": "tool", "tool_call_id": "b", "content": "off"},
        ],
    });
    let answer = answered(&router, "/apply-template", body).await;
    insta::assert_snapshot!(answer["prompt"].as_str().unwrap());
}

#[tokio::test]
async fn wrong_forms_are_named() {
    let router = router(&options());
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let format = |format: Value| json!({"response_format": format});
    let said = |message: Value| json!({"messages": [message]});
    let mut errors = Vec::new();
    for more in [
        json!({"tools": "look"}),
        json!({"tools": [{"type": "web_search"}]}),
        function(json!({})),
        function(json!({"name": "two words"})),
        function(json!({"name": "x", "parameters": 5})),
        function(
            json!({"name": "x", "parameters": {"type": "object", "properties": {"a": {"type": "colour"}}}}),
        ),
        json!({"tools": [tool("a"), tool("a")]}),
        json!({"tool_choice": "required"}),
        json!({"tools": [tool("a")], "tool_choice": "maybe"}),
        json!({"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}}),
        format(json!({"type": "xml"})),
        format(json!({"type": "json_schema"})),
        format(json!({"type": "json_schema", "json_schema": {"name": "x", "schema": 5}})),
        format(
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/none"}}}),
        ),
        json!({"guided_regex": "("}),
        json!({"guided_choice": []}),
        json!({"guided_grammar": "begin: x"}),
        json!({"guided_json": {}, "guided_regex": "a"}),
        json!({"structured_outputs": {"jsn": {}}}),
        json!({"reasoning_effort": "high"}),
        said(json!({"role": "tool", "content": "x"})),
        said(
            json!({"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}),
        ),
        said(json!({"role": "assistant", "content": null})),
    ] {
        let (status, answer) = post(&router, CHAT, chat(more)).await;
        errors.push(line(status, &answer));
    }
    insta::assert_snapshot!(errors.join("\n"));
}
