use std::time::{Duration, UNIX_EPOCH};

use model::{ChatTemplate, Message, Source};
use serde_json::json;

use crate::fixtures;

fn talk() -> Vec<Message> {
    let message =
        |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    vec![
        message("system", "Be brief."),
        message("user", "Is the <pump> \"hot\"?"),
        message("assistant", "Yes."),
        message("user", "Stop it."),
    ]
}

fn render(source: &str) -> String {
    let template = ChatTemplate::new(source, "<s>", "</s>");
    // A Tuesday.
    let now = UNIX_EPOCH + Duration::from_secs(1_709_600_000);
    match template.and_then(|t| t.render_at(&talk(), true, now)) {
        Ok(text) => text,
        Err(error) => format!("error: {error}"),
    }
}

#[test]
fn renders_the_template_of_a_checkpoint() {
    let template = Source::open(&fixtures().join("llama")).unwrap().template().unwrap();
    insta::assert_snapshot!(template.render(&talk(), true).unwrap());
    let without = template.render(&talk(), false).unwrap();
    assert!(template.render(&talk(), true).unwrap().starts_with(&without));
}

#[test]
fn renders_plainly_where_there_is_no_template() {
    let text = ChatTemplate::plain("</s>").render(&talk(), true).unwrap();
    assert!(text.ends_with("### Assistant:\n"));
    insta::assert_snapshot!(text);
}

#[test]
fn renders_turns_without_what_stands_before_them() {
    let turns = |source: &str| {
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        template.render_turns(&talk()[1..3], false).unwrap()
    };
    let each = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    let expected = "[user]Is the <pump> \"hot\"?[assistant]Yes.";
    assert_eq!(turns(each), expected);
    assert_eq!(turns(&format!("{{{{ bos_token }}}}[system]Be kind.{each}")), expected);
    // What is not the same behind earlier turns is rendered whole.
    let counted = format!("{{{{ messages | length }}}}{each}");
    assert_eq!(turns(&counted), format!("2{expected}"));
}

#[test]
fn knows_the_dialect_of_hugging_face() {
    // What jinja2 with the environment of transformers 5.24 gives for the same.
    let cases = [
        // Blocks take the line they stand on, and the template's last newline is dropped.
        ("{% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
        ("{{ bos_token + messages[0]['role'].strip().upper() }}", "<s>SYSTEM"),
        ("{{ messages[1].content | tojson }}", r#""Is the <pump> \"hot\"?""#),
        ("{{ {'a': [1, 2], 'b': none} | tojson }}", r#"{"a": [1, 2], "b": null}"#),
        ("{{ {'a': [1]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ]\n}"),
        (
            "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            "system",
        ),
        (
            "{% for m in messages %}{% if m.role != 'user' %}{% continue %}{% endif %}x{% endfor %}",
            "xx",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "4",
        ),
        ("{{ messages[1:] | length }}{{ messages[-1].content }}", "3Stop it."),
        ("{{ 'a,b'.split(',')[1] }}{{ 'x' in 'xyz' }}{{ tools is defined }}", "bTrueFalse"),
        ("{{ strftime_now('%d %b %Y, %A %H:%M') }}", "05 Mar 2024, Tuesday 00:53"),
        ("{% generation %}a{% endgeneration %}{%- generation -%} b {%- endgeneration -%}", "ab"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(eos_token) }}", "[</s>]"),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source), expected, "{source}");
    }
}

#[test]
fn stops_templates_that_fail_or_do_not_end() {
    let cases = [
        "{{ raise_exception('roles must alternate') }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='a') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{{ 'a' * 999999999999 }}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% include '/etc/passwd' %}",
        "{% if %}",
        "{{ messages[0].content.nothing.more }}",
    ];
    let messages: Vec<String> = cases.into_iter().map(render).collect();
    insta::assert_snapshot!(messages.join("\n"));
    let long = ChatTemplate::new(&"a".repeat(2 << 20), "", "").unwrap_err();
    assert_eq!(long.to_string(), "chat template: 2097152 bytes long, above the limit of 1048576");
}

#[test]
fn templates_get_tools_and_calls() {
    let source = "{% for tool in tools or [] %}{{ tool | tojson }};{% endfor %}\
        {% for message in messages %}{{ message.role }}: {{ message.content }}\
        {% for call in message.tool_calls or [] %}<{{ call.function.arguments | tojson }}>{% endfor %}\
        {% endfor %}{{ 'quick' if enable_thinking is false }}";
    let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
    assert!(template.uses("tools") && template.uses("enable_thinking"));
    assert!(!template.uses("tool") && !template.uses("reasoning_effort"));
    let call = json!({"function": {"name": "look", "arguments": {"at": "V-7"}}});
    let messages = [json!({"role": "assistant", "content": "", "tool_calls": [call]})];
    let render = |variables: serde_json::Value| {
        let variables = variables.as_object().unwrap().clone();
        template.render_values(&messages, &variables, true).unwrap()
    };
    assert_eq!(render(json!({})), "assistant: <{\"at\": \"V-7\"}>");
    let tools = json!({"tools": [{"name": "look"}], "enable_thinking": false});
    assert_eq!(render(tools), "{\"name\": \"look\"};assistant: <{\"at\": \"V-7\"}>quick");
}
