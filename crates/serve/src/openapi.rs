//! The description of the API, for clients and gateways.

use serde_json::{Map, Value, json};

use crate::parameters::MOST_LOGPROBS;

/// The OpenAPI document of a server of the model of this name.
pub(crate) fn document(model: &str) -> Value {
    let mut paths = Map::new();
    for (path, summary, answer) in GETS {
        let mut operation = json!({"summary": summary, "responses": responses(answer, true)});
        if path.contains('{') {
            let schema = json!({"enum": [model]});
            operation["parameters"] =
                json!([{"name": "model", "in": "path", "required": true, "schema": schema}]);
        }
        let open = ["/health", "/metrics", "/openapi.json"].contains(&path);
        operation["security"] = if open { json!([]) } else { security() };
        paths.insert(path.into(), json!({"get": operation}));
    }
    for (path, summary, answer, mut body) in posts() {
        body["properties"]["model"] = json!({"enum": [model]});
        let content = json!({"application/json": {"schema": body}});
        let operation = json!({
            "summary": summary,
            "security": security(),
            "requestBody": {"required": true, "content": content},
            "responses": responses(answer, false),
        });
        paths.insert(path.into(), json!({"post": operation}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Artel",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A company's model with one expert per department. Fields that are not \
                            named here are refused.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": {"Error": error_schema()},
        },
    })
}

const GETS: [(&str, &str, &str); 5] = [
    ("/v1/models", "The model, and the experts that the key permits", "application/json"),
    ("/v1/models/{model}", "The same for one name", "application/json"),
    ("/health", "Whether the server takes requests", "application/json"),
    ("/metrics", "Counts and times, for Prometheus", "text/plain"),
    ("/openapi.json", "This document", "application/json"),
];

fn security() -> Value {
    json!([{}, {"bearer": []}, {"x-api-key": []}])
}

/// Paths with their summaries, the kinds of their answers and the schemas of their bodies.
fn posts() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    const JSON: &str = "application/json";
    const STREAM: &str = "text/event-stream";
    vec![
        ("/v1/chat/completions", "Answers a conversation", STREAM, chat()),
        ("/v1/completions", "Goes on with texts, or scores them", STREAM, completion()),
        ("/v1/responses", "Answers a conversation, in the newer form", STREAM, response()),
        ("/v1/messages", "Answers a conversation, in Anthropic's form", STREAM, message()),
        ("/v1/messages/count_tokens", "Counts a conversation's tokens", JSON, count()),
        ("/v1/embeddings", "The mean of each text's hidden rows, of length 1", JSON, embedding()),
        ("/tokenize", "A text's or a conversation's tokens", JSON, tokenize()),
        ("/detokenize", "The text of tokens", JSON, detokenize()),
        ("/apply-template", "The text that a conversation becomes", JSON, template()),
    ]
}

fn chat() -> Value {
    let own = vec![
        ("messages", conversation()),
        ("logprobs", flag()),
        ("top_logprobs", integer(0, Some(MOST_LOGPROBS))),
        ("reasoning_effort", text()),
    ];
    object(&["messages"], [sampling(), own, tools()].concat())
}

fn completion() -> Value {
    let own =
        vec![("prompt", prompt()), ("echo", flag()), ("logprobs", integer(0, Some(MOST_LOGPROBS)))];
    object(&["prompt"], [sampling(), own].concat())
}

fn response() -> Value {
    let mut items = conversation();
    let others = kinds(&["function_call", "function_call_output", "reasoning"]);
    items["items"] = json!({"anyOf": [items["items"], others]});
    let own = vec![
        ("input", json!({"oneOf": [text(), items]})),
        ("instructions", text()),
        ("max_output_tokens", integer(1, None)),
        ("metadata", any_object()),
        ("stream", flag()),
        ("text", json!({"type": "object", "properties": {"format": any_object()}})),
        ("reasoning", json!({"type": "object", "properties": {"effort": text()}})),
    ];
    object(&["input"], [one(), own, tools()].concat())
}

fn message() -> Value {
    let form = json!({"type": "object", "properties": {"format": any_object()}});
    let own = vec![
        ("max_tokens", integer(1, None)),
        ("messages", turns()),
        ("system", system()),
        ("stop_sequences", list(text())),
        ("stream", flag()),
        ("top_k", integer(-1, None)),
        ("output_config", form),
        ("output_format", any_object()),
    ];
    object(&["max_tokens", "messages"], [one(), own, told()].concat())
}

fn count() -> Value {
    let own = vec![("model", text()), ("messages", turns()), ("system", system())];
    object(&["messages"], [told(), own].concat())
}

fn embedding() -> Value {
    let own = vec![("input", prompt()), ("encoding_format", json!({"enum": ["float", "base64"]}))];
    object(&["input"], [one(), own].concat())
}

fn tokenize() -> Value {
    let own = vec![
        ("model", text()),
        ("content", text()),
        ("prompt", text()),
        ("messages", conversation()),
        ("with_pieces", flag()),
        ("return_token_strs", flag()),
        ("tools", list(any_object())),
    ];
    object(&[], own)
}

fn detokenize() -> Value {
    object(&["tokens"], vec![("model", text()), ("tokens", list(integer(0, None)))])
}

fn template() -> Value {
    let own = vec![
        ("model", text()),
        ("messages", conversation()),
        ("add_generation_prompt", flag()),
        ("tools", list(any_object())),
    ];
    object(&["messages"], own)
}

/// A text, or tokens, or several of either.
fn prompt() -> Value {
    json!({"oneOf": [
        text(), list(text()), list(integer(0, None)), list(list(integer(0, None))),
    ]})
}

/// A conversation as OpenAI's APIs have it.
fn conversation() -> Value {
    let roles = ["system", "developer", "user", "assistant", "tool"];
    messages(&roles, part(&["text", "input_text", "output_text"]))
}

/// A conversation as Anthropic's API has it, and what stands before it.
fn turns() -> Value {
    let blocks = kinds(&["tool_use", "tool_result", "thinking"]);
    messages(&["user", "assistant"], json!({"anyOf": [part(&["text"]), blocks]}))
}

fn system() -> Value {
    json!({"oneOf": [text(), list(part(&["text"]))]})
}

/// At least one message.
fn messages(roles: &[&str], part: Value) -> Value {
    let mut messages = list(json!({
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": roles},
            "content": {"oneOf": [text(), list(part)]},
        },
    }));
    messages["minItems"] = json!(1);
    messages
}

/// Objects of these kinds, whose other fields are those of the APIs.
fn kinds(kinds: &[&str]) -> Value {
    json!({"type": "object", "required": ["type"], "properties": {"type": {"enum": kinds}}})
}

fn part(kinds: &[&str]) -> Value {
    json!({
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"enum": kinds}, "text": text()},
    })
}

type Named = (&'static str, Value);

/// Fields of both kinds of completions.
fn sampling() -> Vec<Named> {
    let stop = json!({"oneOf": [text(), list(text())]});
    [
        one(),
        vec![
            ("max_tokens", integer(0, None)),
            ("max_completion_tokens", integer(0, None)),
            ("min_p", number(0.0, 1.0)),
            ("top_k", integer(-1, None)),
            ("frequency_penalty", number(-2.0, 2.0)),
            ("presence_penalty", number(-2.0, 2.0)),
            ("repetition_penalty", number(0.01, 100.0)),
            (
                "logit_bias",
                json!({"type": "object", "additionalProperties": number(-100.0, 100.0)}),
            ),
            ("n", integer(1, None)),
            ("stop", stop),
            ("stream", flag()),
            ("stream_options", json!({"type": "object"})),
            ("artel", json!({"type": "object", "properties": {"token_experts": flag()}})),
            ("response_format", any_object()),
            ("structured_outputs", any_object()),
            ("guided_json", json!({"oneOf": [any_object(), text()]})),
            ("guided_regex", text()),
            ("guided_choice", list(text())),
            ("guided_grammar", text()),
        ],
    ]
    .concat()
}

/// Fields of OpenAI's APIs about tools.
fn tools() -> Vec<Named> {
    vec![
        ("tools", list(any_object())),
        ("tool_choice", json!({"oneOf": [text(), any_object()]})),
        ("parallel_tool_calls", flag()),
    ]
}

/// Fields of Anthropic's API about tools and thoughts.
fn told() -> Vec<Named> {
    vec![("tools", list(any_object())), ("tool_choice", any_object()), ("thinking", any_object())]
}

fn any_object() -> Value {
    json!({"type": "object"})
}

/// Fields of every request for an answer.
fn one() -> Vec<Named> {
    vec![
        ("model", text()),
        ("experts", list(text())),
        ("temperature", number(0.0, 100.0)),
        ("top_p", json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1})),
        ("seed", json!({"type": "integer"})),
    ]
}

fn object(required: &[&str], fields: Vec<Named>) -> Value {
    let properties: Map<String, Value> =
        fields.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    json!({"type": "object", "required": required, "properties": properties})
}

fn text() -> Value {
    json!({"type": "string"})
}

fn flag() -> Value {
    json!({"type": "boolean"})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn integer(least: i64, most: Option<i64>) -> Value {
    let mut schema = json!({"type": "integer", "minimum": least});
    if let Some(most) = most {
        schema["maximum"] = json!(most);
    }
    schema
}

fn number(least: f64, most: f64) -> Value {
    json!({"type": "number", "minimum": least, "maximum": most})
}

fn responses(answer: &str, looks: bool) -> Value {
    let any = json!({"schema": {}});
    let mut content = Map::new();
    content.insert(answer.to_owned(), any.clone());
    if answer == "text/event-stream" {
        // Unless a stream is asked for.
        content.insert("application/json".into(), any);
    }
    let mut responses = json!({"200": {"description": "The answer", "content": content}});
    let refusals: &[(&str, &str)] = match looks {
        true => &[
            ("401", "No valid key"),
            ("403", "Not from this machine"),
            ("404", "Not here"),
            ("503", "The server is stopping"),
        ],
        false => &[
            ("400", "A field is wrong; the error names it"),
            ("401", "No valid key"),
            ("403", "An expert that the key does not permit"),
            ("404", "Another model"),
            ("408", "The body did not arrive in time"),
            ("413", "The body is too large"),
            ("429", "The queue is full, or the key's limit is used up"),
            ("503", "The server is stopping"),
            ("504", "The answer was not complete in time"),
        ],
    };
    for (status, description) in refusals {
        let schema = json!({"$ref": "#/components/schemas/Error"});
        let content = json!({"application/json": {"schema": schema}});
        responses[*status] = json!({"description": description, "content": content});
    }
    responses
}

fn error_schema() -> Value {
    json!({
        "type": "object",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": text(),
                "type": text(),
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }},
    })
}
