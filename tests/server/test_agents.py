"""The first requests of Claude Code, Codex CLI, opencode and Open WebUI, as they send them.

Each has the fields, headers, kinds of tools and sizes of the real ones, in words of our own. What
was looked at in 2026: for Claude Code its captured sessions in public repositories (headers, betas,
three system blocks, reminders before the question, a system turn after it, `context_management`
with every request, Zod's bounds of +-(2^53 - 1)); for Codex `codex-api/src/common.rs` (the request)
and `tools/src/tool_spec.rs` (its kinds of tools, namespaces and free-form tools among them) of
openai/codex; for opencode `session/llm/request.ts` of sst/opencode and what the AI SDK's
openai-compatible provider makes of it; for Open WebUI `routers/tasks.py` and `routers/openai.py`.

The engines here say what they are told whatever the prompt is, so the answers are known, and
everything about the request is real: schemas, templates, tools, grammars, token counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.serving import client_of, count_tokens, make_echo_engine, serving
from tests.text import samples

CONTEXT = 131_072
MAX_SAFE_INTEGER = 2**53 - 1
PATH = {"path": "/srv/mill/README.md"}
SAYING = "Let me look. "
ANSWER = '{"title": "Look at the mill"}'  # an answer to all that is asked, titles included
TOLD = "The river ran past the mill."

# Whatever a request brings is in the prompt.
TOOLS_TEMPLATE = (
    "{# calls are <tool_call> {name, arguments} </tool_call> #}"
    "{% for tool in tools or [] %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '\\n' }}"
    "{% endfor %}"
)
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ '\\n' }}{% endfor %}"
)


def write_call(name: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': PATH})}\n</tool_call>"


def make_scripted_engine(folder: Path, name: str, text: str, template: str) -> None:
    """An engine, and a model of the same name, that always answer with `text`."""
    script = " ".join(str(token) for token in samples.byte_level().encode(text).ids)
    make_echo_engine(
        folder / name,
        name=name,
        model_id=name,
        chat_template=template,
        max_seq_len=CONTEXT,
        script=script,
    )


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The model `NAME` calls the tool of that name; `answers` does not; `plain` has no tools."""
    folder = tmp_path_factory.mktemp("engines")
    for name in ("Read", "exec_command", "read", "search_web"):
        make_scripted_engine(folder, name, SAYING + write_call(name), TOOLS_TEMPLATE)
    make_scripted_engine(folder, "answers", ANSWER, TOOLS_TEMPLATE)
    make_scripted_engine(folder, "plain", SAYING + write_call("search_web"), PLAIN_TEMPLATE)
    with serving(folder) as server, client_of(server) as client:
        yield client


def make_text(num_tokens: int) -> str:
    """Prose of at least so many tokens."""
    sentence = "The river ran past the mill and the miller counted sacks of flour. "
    return sentence * (num_tokens // count_tokens(sentence) + 1)


def make_schema(**properties: dict[str, Any]) -> dict[str, Any]:
    """As Zod 4 writes it: a dialect, bounds of safe integers, and nothing else allowed."""
    integer = {"type": "integer", "minimum": -MAX_SAFE_INTEGER, "maximum": MAX_SAFE_INTEGER}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "Where the file is"},
            "offset": {**integer, "description": "The first line"},
            "limit": {"type": "integer", "exclusiveMinimum": 0, "maximum": MAX_SAFE_INTEGER},
            "seconds": {"type": "number", "default": 120},
            "labels": {
                "type": "object",
                "propertyNames": {"type": "string"},
                "additionalProperties": {"type": "string"},
            },
            **properties,
        },
        "required": ["path"],
        "additionalProperties": False,
    }


def read_named_events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.read()
    lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert not [event for event in events if event.get("type") == "error" or "error" in event], (
        events[-1]
    )
    return events


# --- Claude Code ---------------------------------------------------------------------------------

CLAUDE_HEADERS = {
    "accept": "application/json",
    "anthropic-beta": (
        "claude-code-20250219,interleaved-thinking-2025-05-14,thinking-token-count-2026-05-13,"
        "context-management-2025-06-27,prompt-caching-scope-2026-01-05,"
        "mid-conversation-system-2026-04-07,effort-2025-11-24"
    ),
    "anthropic-dangerous-direct-browser-access": "true",
    "anthropic-version": "2023-06-01",
    "authorization": "Bearer not-needed",
    "user-agent": "claude-cli/2.1.283 (external, cli)",
    "x-app": "cli",
    "x-claude-code-session-id": "00000000-0000-4000-8000-000000000001",
    "x-stainless-helper-method": "stream",
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
}
CACHED = {"type": "ephemeral"}
NUM_CLAUDE_TOOLS = 24
NUM_CLAUDE_TOKENS = 20_000


def claude_tools() -> list[dict[str, Any]]:
    mode = {"type": "string", "enum": ["content", "files_with_matches", "count"]}
    names = ["Read", *(f"Tool{number}" for number in range(NUM_CLAUDE_TOOLS - 1))]
    about = make_text(300)
    return [
        {"name": name, "description": about, "input_schema": make_schema(mode=mode)}
        for name in names
    ]


def claude_body(model: str, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": messages,
        "system": [
            {
                "type": "text",
                "text": "x-anthropic-billing-header: cc_version=2.1.283; cc_entrypoint=cli;",
            },
            {"type": "text", "text": "You help with programs.", "cache_control": CACHED},
            {
                "type": "text",
                "text": make_text(9_000),
                "cache_control": {"type": "ephemeral", "ttl": "1h"},
            },
        ],
        "tools": claude_tools(),
        "metadata": {"user_id": json.dumps({"device_id": "0" * 64, "session_id": "1"})},
        "max_tokens": 32_000,
        "thinking": {"type": "adaptive", "display": "omitted"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "stream": True,
        **fields,
    }


def claude_question() -> list[dict[str, Any]]:
    reminders = [
        {"type": "text", "text": f"<system-reminder>\n{make_text(60)}\n</system-reminder>"}
        for _ in range(6)
    ]
    question = {"type": "text", "text": "What is in the README?", "cache_control": CACHED}
    environment = {"type": "text", "text": "# Environment\nLinux", "cache_control": CACHED}
    return [
        {"role": "user", "content": [*reminders, question]},
        {"role": "system", "content": [environment]},
    ]


def ask_claude(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """The message that the events of a stream add up to."""
    with http.stream(
        "POST", "/v1/messages?beta=true", json=body, headers=CLAUDE_HEADERS
    ) as response:
        events = read_named_events(response)
    assert events[0]["type"] == "message_start" and events[-1]["type"] == "message_stop"
    message: dict[str, Any] = events[0]["message"]
    for event in events:
        if event["type"] == "content_block_start":
            message["content"].append(event["content_block"] | {"said": ""})
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            said = {"text_delta": "text", "input_json_delta": "partial_json"}[delta["type"]]
            message["content"][event["index"]]["said"] += delta[said]
        elif event["type"] == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
    return message


def test_claude_code_is_answered_with_a_call(http: httpx.Client) -> None:
    body = claude_body("Read", claude_question())
    assert len(body["tools"]) == NUM_CLAUDE_TOOLS
    message = ask_claude(http, body)
    text, call = message["content"]
    assert text["said"].strip() == SAYING.strip()
    assert call["name"] == "Read" and json.loads(call["said"]) == PATH
    assert message["stop_reason"] == "tool_use"
    usage = message["usage"]
    assert usage["input_tokens"] > NUM_CLAUDE_TOKENS
    assert usage["output_tokens"] == count_tokens(SAYING + write_call("Read")) + 1


def test_claude_code_brings_the_result_of_its_call(http: httpx.Client) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": PATH}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": TOLD}
    left = {"type": "text", "text": "<total_tokens>100000 tokens left</total_tokens>"}
    messages = [
        *claude_question(),
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "A file.", "signature": ""},
                {"type": "text", "text": SAYING},
                call,
            ],
        },
        {"role": "user", "content": [{**result, "cache_control": CACHED}]},
        {"role": "system", "content": [left]},
    ]
    first = http.post("/v1/messages/count_tokens", json=count_body(claude_question()))
    message = ask_claude(http, claude_body("answers", messages))
    assert [block["said"] for block in message["content"]] == [ANSWER]
    assert message["stop_reason"] == "end_turn"
    assert message["usage"]["input_tokens"] > first.json()["input_tokens"] + count_tokens(TOLD)


def count_body(messages: list[dict[str, Any]]) -> dict[str, Any]:
    left_out = ("max_tokens", "metadata", "stream")
    body = claude_body("answers", messages)
    return {name: value for name, value in body.items() if name not in left_out}


def test_claude_code_counts_tokens_as_a_message_has_them(http: httpx.Client) -> None:
    response = http.post(
        "/v1/messages/count_tokens?beta=true",
        json=count_body(claude_question()),
        headers=CLAUDE_HEADERS,
    )
    assert response.status_code == 200, response.text
    message = ask_claude(http, claude_body("answers", claude_question()))
    assert response.json()["input_tokens"] == message["usage"]["input_tokens"]


def test_claude_code_is_given_a_title(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string"}},
        "required": ["title"],
        "additionalProperties": False,
    }
    wish = {"format": {"type": "json_schema", "schema": schema}}
    question = [{"role": "user", "content": [{"type": "text", "text": "What is in the README?"}]}]
    fields = {"tools": [], "output_config": wish, "thinking": {"type": "disabled"}}
    message = ask_claude(http, claude_body("answers", question, temperature=1, **fields))
    assert message["content"][0]["said"] == ANSWER


# --- Codex CLI -----------------------------------------------------------------------------------

CODEX_HEADERS = {
    "accept": "text/event-stream",
    "authorization": "Bearer not-needed",
    "originator": "codex_cli_rs",
    "session_id": "00000000-0000-4000-8000-000000000002",
    "user-agent": "codex_cli_rs/0.140.0 (Debian 13.0.0; x86_64) xterm-256color",
    "x-codex-turn-metadata": '{"turn_id": "1"}',
}
NUM_CODEX_TOKENS = 6_500


def codex_function(name: str) -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "description": make_text(100),
        "strict": False,
        "parameters": make_schema(),
    }


def codex_tools() -> list[dict[str, Any]]:
    return [
        *(codex_function(name) for name in ("exec_command", "write_stdin", "update_plan")),
        {
            "type": "custom",
            "name": "apply_patch",
            "description": "Changes files",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
        },
        {"type": "web_search", "external_web_access": False, "search_context_size": "low"},
        {"type": "local_shell"},
        {
            "type": "namespace",
            "name": "mcp__docs",
            "description": "Documentation",
            "tools": [codex_function("read")],
        },
    ]


def codex_input() -> list[dict[str, Any]]:
    def item(role: str, text: str) -> dict[str, Any]:
        part = {"type": "input_text", "text": text}
        return {"type": "message", "role": role, "content": [part]}

    return [
        item("developer", "<permissions>read only</permissions>"),
        item("user", "<environment_context>\n<cwd>/srv/mill</cwd>\n</environment_context>"),
        item("user", "What is in the README?"),
    ]


def codex_body(model: str, items: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {
        "model": model,
        "instructions": make_text(NUM_CODEX_TOKENS),
        "input": items,
        "tools": codex_tools(),
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "00000000-0000-4000-8000-000000000002",
        "text": {"verbosity": "low"},
        "client_metadata": {"x-codex-installation-id": "1"},
        **fields,
    }


def ask_codex(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    with http.stream("POST", "/v1/responses", json=body, headers=CODEX_HEADERS) as response:
        events = read_named_events(response)
    assert events[-1]["type"] == "response.completed"
    last: dict[str, Any] = events[-1]["response"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]
    return last


def test_codex_is_answered_with_a_call(http: httpx.Client) -> None:
    response = ask_codex(http, codex_body("exec_command", codex_input()))
    (call,) = [item for item in response["output"] if item["type"] == "function_call"]
    assert call["name"] == "exec_command" and json.loads(call["arguments"]) == PATH
    assert response["usage"]["input_tokens"] > NUM_CODEX_TOKENS
    assert response["status"] == "completed" and response["max_output_tokens"] is None
    # What was used is shown: functions, and those of a namespace.
    used = {tool["type"] for tool in response["tools"]}
    assert "function" in used and not used & {"web_search", "local_shell"}


def test_codex_brings_the_result_of_its_call(http: httpx.Client) -> None:
    items = [
        *codex_input(),
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": SAYING}],
        },
        {
            "type": "function_call",
            "name": "exec_command",
            "arguments": json.dumps(PATH),
            "call_id": "call_1",
        },
        {"type": "function_call_output", "call_id": "call_1", "output": f"Exit code: 0\n{TOLD}"},
    ]
    response = ask_codex(http, codex_body("answers", items))
    (message,) = [item for item in response["output"] if item["type"] == "message"]
    assert message["content"][0]["text"] == ANSWER


def test_codex_asks_for_an_answer_of_a_schema(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string"}},
        "required": ["title"],
        "additionalProperties": False,
    }
    wish = {"type": "json_schema", "strict": True, "schema": schema, "name": "codex_output_schema"}
    response = ask_codex(http, codex_body("answers", codex_input(), text={"format": wish}))
    assert response["output"][-1]["content"][0]["text"] == ANSWER


# --- opencode ------------------------------------------------------------------------------------

OPENCODE_HEADERS = {
    "authorization": "Bearer not-needed",
    "user-agent": "opencode/1.4.0 ai-sdk/openai-compatible/2.0.92 runtime/bun/1.3.0",
    "x-session-affinity": "ses_1",
    "x-session-id": "ses_1",
}
NUM_OPENCODE_TOKENS = 7_700
OPENCODE_TOOLS = ("bash", "edit", "glob", "grep", "read", "task", "todowrite", "webfetch", "write")
QUESTION = {"role": "user", "content": "What is in the README?"}


def function_tools(names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {"name": name, "description": make_text(100), "parameters": make_schema()},
        }
        for name in names
    ]


def opencode_body(model: str, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    system = {"role": "system", "content": make_text(NUM_OPENCODE_TOKENS)}
    return {
        "model": model,
        "max_tokens": 32_000,
        "temperature": 0,
        "top_p": 1,
        "messages": [system, *messages],
        "tools": function_tools(OPENCODE_TOOLS),
        "tool_choice": "auto",
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }


def ask_chat(
    http: httpx.Client, body: dict[str, Any], headers: dict[str, str]
) -> tuple[dict[str, Any], dict[str, int]]:
    """The choice that a stream adds up to, and its usage."""
    with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        chunks = read_named_events(response)
    choice: dict[str, Any] = {"content": "", "calls": [], "finish_reason": None}
    for chunk in chunks:
        for part in chunk["choices"]:
            choice["content"] += part["delta"].get("content") or ""
            for call in part["delta"].get("tool_calls") or []:
                if call["index"] == len(choice["calls"]):
                    choice["calls"].append({"name": call["function"]["name"], "arguments": ""})
                choice["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
    return choice, chunks[-1]["usage"]


def with_result(name: str) -> list[dict[str, Any]]:
    function = {"name": name, "arguments": json.dumps(PATH)}
    call = {"id": "call_1", "type": "function", "function": function}
    return [
        QUESTION,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "A file.",
            "tool_calls": [call],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": TOLD},
    ]


def expect_call(choice: dict[str, Any], name: str) -> None:
    (call,) = choice["calls"]
    assert call["name"] == name and json.loads(call["arguments"]) == PATH
    assert choice["content"].strip() == SAYING.strip()
    assert choice["finish_reason"] == "tool_calls"


def test_opencode_is_answered_with_a_call(http: httpx.Client) -> None:
    choice, usage = ask_chat(http, opencode_body("read", [QUESTION]), OPENCODE_HEADERS)
    expect_call(choice, "read")
    assert usage["prompt_tokens"] > NUM_OPENCODE_TOKENS
    assert usage["completion_tokens"] == count_tokens(SAYING + write_call("read")) + 1


def test_opencode_brings_the_result_of_its_call(http: httpx.Client) -> None:
    body = opencode_body("answers", with_result("read"))
    choice, usage = ask_chat(http, body, OPENCODE_HEADERS)
    assert (choice["content"], choice["finish_reason"]) == (ANSWER, "stop")
    _, before = ask_chat(http, opencode_body("answers", [QUESTION]), OPENCODE_HEADERS)
    assert usage["prompt_tokens"] > before["prompt_tokens"] + count_tokens(TOLD)


def test_opencode_is_given_a_title(http: httpx.Client) -> None:
    body = opencode_body("answers", [{"role": "user", "content": "A title for:\n"}, QUESTION])
    del body["tools"], body["tool_choice"]
    choice, _ = ask_chat(http, body, OPENCODE_HEADERS)
    assert (choice["content"], choice["finish_reason"]) == (ANSWER, "stop")


# --- Open WebUI ----------------------------------------------------------------------------------

WEBUI_HEADERS = {
    "authorization": "Bearer not-needed",
    "x-openwebui-chat-id": "chat-1",
    "x-openwebui-user-name": "Miller",
}
NUM_WEBUI_TOOLS = 36
NUM_WEBUI_TOKENS = 7_000


def webui_tools() -> list[dict[str, Any]]:
    others = (f"tool_{number}" for number in range(NUM_WEBUI_TOOLS - 1))
    return function_tools(("search_web", *others))


def webui_body(model: str, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {
        "stream": True,
        "model": model,
        "messages": messages,
        "stream_options": {"include_usage": True},
        "metadata": {"chat_id": "chat-1", "message_id": "message-1"},
        **fields,
    }


@pytest.mark.parametrize("model", ["search_web", "plain"])
def test_open_webui_is_answered_with_a_call(http: httpx.Client, model: str) -> None:
    body = webui_body(model, [QUESTION], tools=webui_tools())
    assert len(body["tools"]) == NUM_WEBUI_TOOLS
    choice, usage = ask_chat(http, body, WEBUI_HEADERS)
    expect_call(choice, "search_web")
    assert usage["prompt_tokens"] > NUM_WEBUI_TOKENS


@pytest.mark.parametrize("model", ["answers", "plain"])
def test_open_webui_without_tools_is_answered_with_text(http: httpx.Client, model: str) -> None:
    choice, usage = ask_chat(http, webui_body(model, [QUESTION]), WEBUI_HEADERS)
    said = ANSWER if model == "answers" else SAYING + write_call("search_web")
    assert (choice["content"], choice["calls"]) == (said, [])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_open_webui_brings_the_result_of_its_call(http: httpx.Client) -> None:
    body = webui_body("answers", with_result("search_web"), tools=webui_tools())
    choice, _ = ask_chat(http, body, WEBUI_HEADERS)
    assert (choice["content"], choice["finish_reason"]) == (ANSWER, "stop")


@pytest.mark.parametrize("fields", [{"max_completion_tokens": 1_000}, {}], ids=["title", "next"])
def test_open_webui_is_given_titles_and_next_questions(
    http: httpx.Client, fields: dict[str, Any]
) -> None:
    task = {"role": "user", "content": f"### Task:\n{make_text(400)}\nAnswer in JSON."}
    body = webui_body("answers", [task], stream=False, **fields)
    del body["stream_options"]
    response = http.post("/v1/chat/completions", json=body, headers=WEBUI_HEADERS)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == ANSWER


def test_open_webui_finds_the_models(http: httpx.Client) -> None:
    response = http.get("/v1/models", headers=WEBUI_HEADERS)
    assert {"answers", "plain"} <= {model["id"] for model in response.json()["data"]}
