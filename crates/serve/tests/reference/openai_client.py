"""Checks a running server with OpenAI's own client.

    python openai_client.py http://127.0.0.1:8080 [KEY]

Needs the Python package `openai`. Prints a table of checks and exits with 1 if one fails.
"""

import math
import sys

import openai

url, key = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "none"
client = openai.OpenAI(base_url=url.rstrip("/") + "/v1", api_key=key, max_retries=0, timeout=300)
model = client.models.list().data[0].id
question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
checks = []


def check(function):
    checks.append(function)
    return function


def refused(kind, status, param, call):
    try:
        call()
    except kind as error:
        assert error.status_code == status, error
        assert error.body["param"] == param, error.body
        return error.body["message"]
    raise AssertionError("not refused")


def chat(**more):
    settings = {"model": model, "messages": question, "temperature": 0, "max_tokens": 16}
    return client.chat.completions.create(**(settings | more))


def complete(**more):
    settings = {"model": model, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    return client.completions.create(**(settings | more))


@check
def models():
    assert client.models.retrieve(model).id == model
    return model


@check
def chat_completion():
    answer = chat()
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.choices[0].finish_reason in ("stop", "length")
    return repr(answer.choices[0].message.content)


@check
def chat_stream():
    parts = list(chat(stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    whole = chat()
    assert text == whole.choices[0].message.content, text
    assert parts[-1].usage == whole.usage
    return f"{len(parts)} parts"


@check
def chat_logprobs():
    answer = chat(logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob
    text = b"".join(bytes(token.bytes) for token in tokens).decode()
    assert text == answer.choices[0].message.content
    return f"{len(tokens)} tokens"


@check
def chat_logprobs_streamed():
    parts = chat(logprobs=True, top_logprobs=2, stream=True)
    streamed = [t for p in parts if p.choices and p.choices[0].logprobs for t in p.choices[0].logprobs.content]
    whole = chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [t.token for t in streamed] == [t.token for t in whole]
    return f"{len(streamed)} tokens"


@check
def chat_several_choices():
    answer = chat(n=3, temperature=1, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    again = chat(n=3, temperature=1, seed=1)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert chat(temperature=1, seed=1).choices[0].message.content == texts[0]
    return f"{len(set(texts))} different"


@check
def chat_stop():
    whole = chat(max_tokens=32).choices[0].message.content
    stop = whole[3:5]
    answer = chat(max_tokens=32, stop=[stop])
    assert answer.choices[0].message.content == whole.split(stop)[0]
    assert answer.choices[0].finish_reason == "stop"
    return repr(stop)


@check
def chat_content_parts():
    parts = [{"role": "user", "content": [{"type": "text", "text": question[0]["content"]}]}]
    assert chat(messages=parts).choices[0].message.content == chat().choices[0].message.content


@check
def chat_biases_and_penalties():
    chat(frequency_penalty=0.5, presence_penalty=0.5, top_p=0.9, logit_bias={"5": -100})
    chat(extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1})


@check
def completion():
    answer = complete()
    assert answer.usage.completion_tokens <= 8
    return repr(answer.choices[0].text)


@check
def completion_stream():
    parts = list(complete(stream=True))
    assert "".join(part.choices[0].text for part in parts) == complete().choices[0].text
    return f"{len(parts)} parts"


@check
def scored_prompt():
    answer = complete(prompt="The capital of France is Paris.", echo=True, logprobs=2, max_tokens=0)
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert choice.text == "The capital of France is Paris."
    assert answer.usage.completion_tokens == 0
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(logprob < 0 for logprob in logprobs.token_logprobs[1:])
    for token, offset in zip(logprobs.tokens, logprobs.text_offset):
        assert choice.text[offset : offset + len(token)] == token
    for token, logprob, top in list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs))[1:]:
        assert top[token] == logprob and 2 <= len(top) <= 3
    return f"{-sum(logprobs.token_logprobs[1:]) / (len(logprobs.tokens) - 1):.3f} nats/token"


@check
def scored_as_generated():
    """What is generated has the log-probabilities that scoring it gives."""
    generated = complete(logprobs=1)
    text = generated.choices[0].text
    scored = complete(prompt="The capital of France is" + text, echo=True, logprobs=1, max_tokens=0)
    ours = generated.choices[0].logprobs.token_logprobs
    theirs = scored.choices[0].logprobs.token_logprobs[-len(ours) :]
    worst = max(abs(a - b) for a, b in zip(ours, theirs))
    # A prompt's attention is summed in another order than an answer's, and where an activation is rounded to
    # 8 bits the last digit of a sum can turn it.
    assert worst < 0.1, worst
    return f"largest difference {worst:.1e}"


@check
def prompt_as_tokens():
    tokens = [504, 3575, 282]
    one = complete(prompt=tokens).choices[0].text
    many = complete(prompt=[tokens, tokens[:2]])
    assert many.choices[0].text == one and len(many.choices) == 2
    assert many.usage.prompt_tokens == 5
    return repr(one)


@check
def prompts_in_a_list():
    answer = complete(prompt=["One, two,", "Red, green,"], n=2, temperature=1, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


@check
def gates():
    answer = chat(extra_body={"artel": {"token_experts": True}})
    experts = answer.choices[0].model_extra["artel"]["experts"]
    assert all(0 <= gate <= 1 and math.isfinite(gate) for gate in experts.values())
    return experts


@check
def unknown_field():
    call = lambda: chat(extra_body={"temprature": 1})
    return refused(openai.BadRequestError, 400, "temprature", call)


@check
def tools_are_refused():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    return refused(openai.BadRequestError, 400, "tools", lambda: chat(tools=tools))


@check
def unknown_model():
    return refused(openai.NotFoundError, 404, "model", lambda: chat(model="gpt-9"))


@check
def too_long():
    long = [{"role": "user", "content": "word " * 40000}]
    return refused(openai.BadRequestError, 400, "messages", lambda: chat(messages=long))


@check
def unknown_expert():
    call = lambda: chat(extra_body={"experts": ["alchemy"]})
    return refused(openai.BadRequestError, 400, "experts", call)


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
