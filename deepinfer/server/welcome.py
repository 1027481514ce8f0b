"""What a server prints when it is ready: where it is, and two ways to try it at once."""

from __future__ import annotations

import json

from deepinfer.config import environment_name
from deepinfer.server.engines import ServedEngine

QUESTION = "Tell me a story"
KEY_VARIABLE = environment_name("server.api_key")


def describe_server(engine: ServedEngine, base_url: str, *, needs_key: bool) -> str:
    """The block, ready to be pasted from; it ends with a line break."""
    manifest = engine.manifest
    lines = [
        "",
        f"Model      {manifest.model.id} ({manifest.precision}, {manifest.backend.name})",
        f"Base URL   {base_url}/v1",
        "",
        *_curl(engine, base_url, needs_key),
        "",
        *_python(engine, base_url, needs_key),
        "",
    ]
    return "\n".join(lines) + "\n"


def _curl(engine: ServedEngine, base_url: str, needs_key: bool) -> list[str]:
    body: dict[str, object] = {"prompt": QUESTION, "stream": True}
    route = "completions"
    if engine.chat_template.is_available:
        body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True}
        route = "chat/completions"
    key = [f'  -H "Authorization: Bearer ${KEY_VARIABLE}" \\'] if needs_key else []
    return [
        f"curl {base_url}/v1/{route} \\",
        *key,
        '  -H "Content-Type: application/json" \\',
        f"  -d '{json.dumps(body)}'",
    ]


def _python(engine: ServedEngine, base_url: str, needs_key: bool) -> list[str]:
    key = f'os.environ["{KEY_VARIABLE}"]' if needs_key else '"not-needed"'
    head = [
        *(["import os", ""] if needs_key else []),
        "from openai import OpenAI",
        "",
        f'client = OpenAI(base_url="{base_url}/v1", api_key={key})',
    ]
    model, question = json.dumps(engine.model_id), json.dumps(QUESTION)
    if not engine.chat_template.is_available:
        return [
            *head,
            f"answer = client.completions.create(model={model}, prompt={question})",
            "print(answer.choices[0].text)",
        ]
    return [
        *head,
        "answer = client.chat.completions.create(",
        f'    model={model}, messages=[{{"role": "user", "content": {question}}}]',
        ")",
        "print(answer.choices[0].message.content)",
    ]
