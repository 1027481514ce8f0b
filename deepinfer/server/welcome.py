"""What a server prints when it is ready: where it is, and two ways to try it at once."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from deepinfer.config import environment_name
from deepinfer.server.engines import EngineCatalog, ServedEngine

QUESTION = "Tell me a story"
KEY_VARIABLE = environment_name("server.api_key")


@dataclass(frozen=True)
class Address:
    """Where the server is, and what its requests need."""

    base_url: str
    needs_key: bool
    is_greedy_only: bool  # as beside a draft engine


def describe_server(engines: EngineCatalog, address: Address) -> str:
    """The block, ready to be pasted from; it ends with a line break.

    It shows the engines that are ready, and how to ask the first of them.
    """
    # One that dies at this very moment is shown as well: it is started again.
    ready = [e for e in engines if e.client.status.is_ready] or [engines.default]
    engine = ready[0]
    lines = [
        "",
        *(_describe_engine(engine) for engine in ready),
        f"Base URL   {address.base_url}/v1",
        "",
        *_curl(engine, address, is_default=engine is engines.default),
        "",
        *_python(engine, address),
        "",
    ]
    return "\n".join(lines) + "\n"


def _describe_engine(engine: ServedEngine) -> str:
    manifest = engine.manifest
    names = ", ".join(engine.names.listed)
    return f"Model      {names} ({manifest.precision}, {manifest.backend.name})"


def _curl(engine: ServedEngine, address: Address, *, is_default: bool) -> list[str]:
    body: dict[str, object] = {"prompt": QUESTION, "stream": True}
    route = "completions"
    if engine.chat_template.is_available:
        body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True}
        route = "chat/completions"
    if not is_default:
        body = {"model": engine.model_id, **body}
    if address.is_greedy_only:
        body["temperature"] = 0
    key = [f'  -H "Authorization: Bearer ${KEY_VARIABLE}" \\'] if address.needs_key else []
    return [
        f"curl {address.base_url}/v1/{route} \\",
        *key,
        '  -H "Content-Type: application/json" \\',
        f"  -d {shlex.quote(json.dumps(body))}",
    ]


def _python(engine: ServedEngine, address: Address) -> list[str]:
    key = f'os.environ["{KEY_VARIABLE}"]' if address.needs_key else '"not-needed"'
    head = [
        *(["import os", ""] if address.needs_key else []),
        "from openai import OpenAI",
        "",
        f'client = OpenAI(base_url="{address.base_url}/v1", api_key={key})',
    ]
    model, question = json.dumps(engine.model_id), json.dumps(QUESTION)
    greedy = ", temperature=0" if address.is_greedy_only else ""
    if not engine.chat_template.is_available:
        return [
            *head,
            f"answer = client.completions.create(model={model}, prompt={question}{greedy})",
            "print(answer.choices[0].text)",
        ]
    return [
        *head,
        "answer = client.chat.completions.create(",
        f'    model={model}, messages=[{{"role": "user", "content": {question}}}]{greedy}',
        ")",
        "print(answer.choices[0].message.content)",
    ]
