"""Checks a running server with LangChain's ChatOpenAI.

    python langchain_client.py http://127.0.0.1:8080 [KEY]

Needs the Python package `langchain-openai`. Prints a table of checks and exits with 1 if one fails.
"""

import sys
import typing

import pydantic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

url, key = sys.argv[1].rstrip("/") + "/v1", sys.argv[2] if len(sys.argv) > 2 else "none"
settings = {"base_url": url, "api_key": key, "temperature": 0, "max_retries": 0, "timeout": 300}
model = ChatOpenAI(model="", **settings).root_client.models.list().data[0].id
chat = ChatOpenAI(model=model, max_tokens=64, **settings)
ask = [SystemMessage("Be brief."), HumanMessage("What is the capital of France?")]
checks = []


class City(pydantic.BaseModel):
    """A city."""

    name: typing.Literal["Paris", "Rome"] = pydantic.Field(description="its name")
    capital: bool


@tool
def look_up(city: typing.Literal["Paris", "Rome"]) -> str:
    """Looks a city up."""
    return f"{city} is a capital."


def check(function):
    checks.append(function)
    return function


@check
def invoke():
    answer = chat.invoke(ask)
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    return repr(answer.content)


@check
def stream():
    parts = list(chat.stream(ask, stream_usage=True))
    assert "".join(part.content for part in parts) == chat.invoke(ask).content
    assert any(part.usage_metadata for part in parts)
    return f"{len(parts)} parts"


@check
def batch():
    answers = chat.batch([ask, ask, ask])
    assert len({answer.content for answer in answers}) == 1


@check
def tool_call_and_its_answer():
    answer = chat.bind_tools([look_up], tool_choice="look_up", parallel_tool_calls=False).invoke(ask)
    [call] = answer.tool_calls
    assert call["name"] == "look_up" and call["args"]["city"] in ("Paris", "Rome"), call
    result = ToolMessage(look_up.invoke(call["args"]), tool_call_id=call["id"])
    later = chat.bind_tools([look_up], tool_choice="none").invoke([*ask, answer, result])
    assert isinstance(later, AIMessage) and not later.tool_calls
    return call["args"]


@check
def tool_call_streamed():
    bound = chat.bind_tools([look_up], tool_choice="required", parallel_tool_calls=False)
    parts = list(bound.stream(ask))
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert whole.tool_calls[0]["args"] == bound.invoke(ask).tool_calls[0]["args"]
    return f"{len(parts)} parts"


@check
def structured_by_schema():
    return chat.with_structured_output(City, method="json_schema").invoke(ask)


@check
def structured_by_function():
    return chat.with_structured_output(City, method="function_calling").invoke(ask)


@check
def responses_api():
    answer = ChatOpenAI(model=model, use_responses_api=True, max_tokens=32, **settings).invoke(ask)
    return repr(answer.text)


@check
def embeddings():
    embedder = OpenAIEmbeddings(model=model, base_url=url, api_key=key, check_embedding_ctx_length=False)
    return f"{len(embedder.embed_query('one'))} values"


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
