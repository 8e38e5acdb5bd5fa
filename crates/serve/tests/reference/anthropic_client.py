"""Checks a running server with Anthropic's own client.

    python anthropic_client.py http://127.0.0.1:8080 [KEY]

Needs the Python package `anthropic`. Prints a table of checks and exits with 1 if one fails.
"""

import json
import sys
import urllib.request

import anthropic

url, key = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "none"
client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=300)
listing = urllib.request.Request(url.rstrip("/") + "/v1/models", headers={"x-api-key": key})
model = json.load(urllib.request.urlopen(listing))["data"][0]["id"]
question = [{"role": "user", "content": "What is the capital of France?"}]
schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
          "additionalProperties": False}
tools = [{"name": "look_up", "description": "Looks a city up.", "input_schema": schema}]
forced = {"tools": tools, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
# The client has no name for it any more, the API has.
settings = {"model": model, "messages": question, "max_tokens": 64, "extra_body": {"temperature": 0}}
checks = []


def check(function):
    checks.append(function)
    return function


def ask(**more):
    return client.messages.create(**{**settings, **more})


@check
def message():
    answer = ask()
    assert answer.stop_reason in ("end_turn", "max_tokens")
    return repr(answer.content[0].text)


@check
def streamed():
    with client.messages.stream(**settings) as stream:
        text = "".join(stream.text_stream)
        assert text == stream.get_final_message().content[0].text
    assert text == ask().content[0].text


@check
def count_tokens():
    count = client.messages.count_tokens(model=model, messages=question).input_tokens
    usage = ask().usage
    assert count == usage.input_tokens + usage.cache_read_input_tokens
    with_tools = client.messages.count_tokens(model=model, messages=question, tools=tools).input_tokens
    assert with_tools > count
    return count, with_tools


@check
def tool_use_and_its_result():
    answer = ask(**forced)
    [block] = answer.content
    assert answer.stop_reason == "tool_use" and block.input["city"] in ("Paris", "Rome")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "It is the capital."}
    turns = [*question, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    ask(messages=turns, tools=tools, tool_choice={"type": "none"})
    return block.input


@check
def tool_use_streamed():
    with client.messages.stream(**settings, **forced) as stream:
        [block] = stream.get_final_message().content
    assert block.input == ask(**forced).content[0].input
    return block.input


@check
def refusal():
    try:
        ask(extra_body={"top_k": "many"})
    except anthropic.BadRequestError as error:
        assert error.body["error"]["type"] == "invalid_request_error"
        return error.body["error"]["message"]
    raise AssertionError("not refused")


failures = 0
for function in checks:
    try:
        result, note = "ok", function() or ""
    except Exception as error:
        failures += 1
        result, note = "FAILED", f"{type(error).__name__}: {error}"
    print(f"{function.__name__:26} {result:7} {str(note)[:100]}", flush=True)
print(f"{len(checks) - failures} of {len(checks)} checks passed")
sys.exit(failures > 0)
