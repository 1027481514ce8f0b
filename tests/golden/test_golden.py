"""What must stay the same while the code is rearranged, compared with recorded files.

`make test ARGS='--force-regen tests/golden'` writes the files anew; the difference is then reviewed
like code.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pytest_regressions.file_regression import FileRegressionFixture

from deepinfer import __version__
from tests.building import BuildEngine
from tests.contract.installing import double_environment, make_double_root
from tests.server.serving import client_of, make_echo_engine, serving
from tests.text import samples

CONFIGS = Path(__file__).parent.parent / "recorded" / "configs"
PLANNED = (
    "llama-3.1-8b-instruct",
    "mistral-small-24b-instruct-2501",
    "phi-4",
    "qwen2.5-7b-instruct",
    "qwen3-14b",
    "qwen3-32b",
)
OF_THE_MACHINE = ("free_memory_bytes", "free_disk_bytes")
TEMPLATE = (
    "{# calls are <tool_call> {name, arguments} </tool_call> #}"
    "{% for tool in tools or [] %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKING_TEMPLATE = TEMPLATE + "{# <think> </think> #}"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SAID = "The mill grinds at night."
SCRIPTS = {
    "says": (SAID, TEMPLATE),
    "calls": (
        'Let me look. <tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>',
        TEMPLATE,
    ),
    "thinks": (f"<think>\nWho grinds?\n</think>\n\n{SAID}", THINKING_TEMPLATE),
}
CHAT = {"messages": [{"role": "user", "content": "What is new?"}], "stream": True}
MESSAGES = {**CHAT, "max_tokens": 64}
RESPONSES = {"input": "What is new?", "stream": True, "store": False}
FUNCTION = {"name": "weather", "description": "Tells the weather", "parameters": PARAMETERS}
CHAT_TOOLS = {"tools": [{"type": "function", "function": FUNCTION}]}
FLAT_TOOLS = {"tools": [{"type": "function", **FUNCTION}]}
ANTHROPIC_TOOLS = {
    "tools": [{"name": "weather", "description": "Tells it", "input_schema": PARAMETERS}]
}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        "/v1/chat/completions",
        {
            **CHAT,
            "model": "says",
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 1,
        },
    ),
    "chat-whole": ("/v1/chat/completions", {**CHAT, "model": "says", "stream": False}),
    "chat-tools": ("/v1/chat/completions", {**CHAT, **CHAT_TOOLS, "model": "calls"}),
    "chat-reasoning": ("/v1/chat/completions", {**CHAT, "model": "thinks"}),
    "completions": (
        "/v1/completions",
        {"model": "says", "prompt": "a", "stream": True, "echo": True},
    ),
    "responses": ("/v1/responses", {**RESPONSES, "model": "says"}),
    "responses-tools": ("/v1/responses", {**RESPONSES, **FLAT_TOOLS, "model": "calls"}),
    "responses-reasoning": ("/v1/responses", {**RESPONSES, "model": "thinks"}),
    "messages": ("/v1/messages", {**MESSAGES, "model": "says"}),
    "messages-tools": ("/v1/messages", {**MESSAGES, **ANTHROPIC_TOOLS, "model": "calls"}),
    "messages-reasoning": (
        "/v1/messages",
        {**MESSAGES, "model": "thinks", "thinking": {"type": "enabled", "budget_tokens": 1024}},
    ),
    "chat-unknown-field": ("/v1/chat/completions", {**CHAT, "model": "says", "suffx": "x"}),
    "chat-bad-value": ("/v1/chat/completions", {**CHAT, "model": "says", "temperature": 3}),
    "responses-unknown-model": ("/v1/responses", {**RESPONSES, "model": "none"}),
    "messages-without-limit": ("/v1/messages", {**CHAT, "model": "says"}),
}
ID = re.compile(r"\b((?:req|chatcmpl|cmpl|resp|msg|rs|fc|call|toolu)[-_])[0-9A-Za-z]{8,}")
TIME = re.compile(r'("(?:created|created_at|completed_at)": ?)[0-9.]+')
DIGEST = re.compile(r'("system_fingerprint": ?)"[^"]*"')
# A message that begins says how many tokens there are by then.
TOKENS_SO_FAR = re.compile(r'(event: message_start\n.*?"output_tokens": )[0-9]+', re.DOTALL)
# Where the text of a token is, in the events of all routes.
TEXT_FIELDS = {"arguments", "content", "delta", "partial_json", "reasoning", "reasoning_content"}
TEXT_FIELDS |= {"text", "thinking"}


def join_deltas(body: str) -> str:
    """The events with deltas that follow each other made one, as a busy machine may send them.

    All that is not text stays byte for byte as it was sent.
    """
    joined: list[tuple[str, Any]] = []
    for number, event in enumerate(body.removesuffix("\n\n").split("\n\n")):
        head, _, data = event.rpartition("data: ")
        if data == "[DONE]":
            joined.append((head, data))
            continue
        value = json.loads(data)
        assert json.dumps(value, ensure_ascii=False, separators=(",", ":")) == data
        assert value.pop("sequence_number", number) == number
        whole = add_text(joined[-1][1], value) if joined else None
        if whole is None or whole == value:
            joined.append((head, value))
        else:
            joined[-1] = (head, whole)
    return "".join(
        f"{head}data: {value if isinstance(value, str) else pretty(value).rstrip()}\n\n"
        for head, value in joined
    )


def add_text(first: Any, second: Any, name: str = "") -> Any:
    """`first` with the text of `second` behind its own; None where they differ in more."""
    if name in TEXT_FIELDS and type(first) is type(second) and isinstance(first, str | list):
        return first + second
    if name == "finish_reason" and first is None:
        return second
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        found = {key: add_text(first[key], second[key], key) for key in first}
        return None if any(found[key] is None is not second[key] for key in first) else found
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        items = [add_text(one, other) for one, other in zip(first, second, strict=True)]
        return None if None in items else items
    return second if first == second else None


def normalise(text: str) -> str:
    """Ids by the order in which they appear, and no times."""
    numbers: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        return numbers.setdefault(found[0], f"{found[1]}{len(numbers) + 1}")

    text = ID.sub(number, text).replace(f'"{__version__}"', '"VERSION"')
    text = TOKENS_SO_FAR.sub(r"\g<1>0", text)
    return DIGEST.sub(r'\1"DIGEST"', TIME.sub(r"\g<1>0", text))


def pretty(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("engines")
    for name, (text, template) in SCRIPTS.items():
        make_echo_engine(
            folder / name,
            name=name,
            model_id=name,
            chat_template=template,
            script=" ".join(str(token) for token in samples.byte_level().encode(text).ids),
            step_us=5_000,
        )
    with serving(folder) as server, client_of(server) as client:
        yield client


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_keep_their_bytes(
    http: httpx.Client, name: str, file_regression: FileRegressionFixture
) -> None:
    path, body = REQUESTS[name]
    answer = http.post(path, json=body)
    is_stream = answer.headers["content-type"].startswith("text/event-stream")
    text = join_deltas(answer.text) if is_stream else answer.text
    text = f"{answer.status_code} {answer.headers['content-type']}\n\n{text}"
    file_regression.check(normalise(text), basename=name, extension=".txt")


def test_openapi_keeps_paths_and_field_names(
    http: httpx.Client, file_regression: FileRegressionFixture
) -> None:
    document = http.get("/openapi.json").json()
    found: dict[str, Any] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {})
            schema = body.get("application/json", {}).get("schema", {})
            found[f"{method.upper()} {path}"] = {
                "parameters": sorted(one["name"] for one in operation.get("parameters", [])),
                "body": field_names(schema, document, ()),
                "answers": sorted(operation["responses"]),
            }
    file_regression.check(pretty(found), basename="openapi", extension=".json")


def field_names(
    schema: dict[str, Any], document: dict[str, Any], within: tuple[str, ...]
) -> dict[str, Any]:
    """Names of the fields that an object may have, with those of the objects within them."""
    reference = schema.get("$ref")
    if reference is not None:
        if reference in within:
            return {"(recursive)": {}}
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        return field_names(target, document, (*within, reference))
    found: dict[str, Any] = {}
    for name, inner in schema.get("properties", {}).items():
        found[name] = field_names(inner, document, within)
    inner_schemas = [one for key in ("anyOf", "oneOf", "allOf") for one in schema.get(key, [])]
    inner_schemas += [schema["items"]] if isinstance(schema.get("items"), dict) else []
    for inner in inner_schemas:
        for name, names in field_names(inner, document, within).items():
            found.setdefault(name, {}).update(names)
    return dict(sorted(found.items()))


def test_effective_configuration_keeps_its_text(
    tmp_path: Path, file_regression: FileRegressionFixture
) -> None:
    done = run_command("serve", "--print-config", "--engine-dir", "engines", cwd=tmp_path)
    file_regression.check(done, basename="configuration", extension=".yaml")


@pytest.mark.parametrize("model", PLANNED)
def test_plans_for_an_rtx_5090_keep_their_json(
    model: str, file_regression: FileRegressionFixture
) -> None:
    arguments = ("--model", str(CONFIGS / model), "--target", "rtx5090", "--dry-run", "--json")
    plan = json.loads(run_command("build", *arguments))
    for name in OF_THE_MACHINE:
        del plan["build"][name]
    # About the memory and the cards of the machine that plans.
    plan["warnings"] = [text for text in plan["warnings"] if "this machine" not in text]
    file_regression.check(pretty(plan), basename=f"plan-{model}", extension=".json")


def run_command(
    *arguments: str, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "deepinfer", *arguments],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("architecture", "precision"), [("llama", "fp32"), ("qwen3", "int8")])
def test_engines_for_a_cpu_keep_their_manifest(
    build_engine: BuildEngine,
    architecture: str,
    precision: str,
    file_regression: FileRegressionFixture,
) -> None:
    engine = build_engine(architecture, precision).engine
    check_manifest(engine.path, f"engine-{architecture}", file_regression)


def test_engine_for_a_gpu_keeps_its_manifest(
    tmp_path: Path, file_regression: FileRegressionFixture
) -> None:
    environment = double_environment(make_double_root(tmp_path / "double"))
    arguments = ("--model", "sample", "--output", str(tmp_path / "engines"), "--name", "gpu")
    run_command("build", *arguments, environment=dict(environment))
    check_manifest(tmp_path / "engines" / "gpu", "engine-gpu", file_regression)


def check_manifest(folder: Path, basename: str, file_regression: FileRegressionFixture) -> None:
    manifest = json.loads((folder / "engine.json").read_text())
    text = pretty(mask(manifest, "")).replace(str(folder.parent.parent), "FOLDER")
    file_regression.check(text, basename=basename, extension=".json")


# What the machine, the clock and the installed packages decide.
MASKED = re.compile(
    r"\.name|\.model\.id|\.files\.[^/].*|\.target\.(name|features)|\.build\..*"
    r"|\.backend\.settings\.(inference_precision|dynamic_quantization_group_size)"
    r"|\.limits\.max_batch_size|\.backend\.(version|libraries\..*)|\.deepinfer_version|.*(digest|sha256|_at|seconds|_s|checkpoint|source)$"
)


def mask(value: Any, at: str) -> Any:
    if isinstance(value, dict) and value:
        return {key: mask(inner, f"{at}.{key}") for key, inner in value.items()}
    return "..." if MASKED.fullmatch(at) else value
