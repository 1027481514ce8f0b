"""What the tests of /v1/messages share: an engine that says what it is told, and its clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic

from tests.server.serving import DEADLINE_S, ServerProcess, make_echo_engine, serving

# The answer is the last message; where that is no text, it is what else the template was given.
SAYING_TEMPLATE = (
    "{# calls are <tool_call> {name, arguments} </tool_call>, thoughts <think> </think> #}"
    "{% if tools %}{% endif %}{{ messages[-1].content }}"
    "{% if messages[-1].content == 'thinking?' %}"
    "{{ enable_thinking if enable_thinking is defined else 'unset' }}"
    "{{ reasoning_effort if reasoning_effort is defined else '' }}{% endif %}"
)
# Every message on a line of its own, with its calls and what it answers.
LISTING_TEMPLATE = (
    "{# <tool_call> {name, arguments} </tool_call> #}"
    "{% for tool in tools or [] %}{{ tool.function | tojson }}{{ '\\n' }}{% endfor %}"
    "{% for message in messages %}{{ message.role }}"
    "{% if message.tool_call_id %} {{ message.tool_call_id }}{% endif %}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %}[{{ call.function.name }} "
    "{{ call.function.arguments | tojson }}]{% endfor %}{{ '\\n' }}{% endfor %}"
)
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Says the weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2]}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
INPUT = {"city": "Zoë's {town}", "days": 2}
CALL = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zoë\'s {town}", "days": 2}}\n'
    "</tool_call>"
)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@contextmanager
def messages_client(server: ServerProcess, **options: str) -> Iterator[anthropic.Anthropic]:
    credentials = options or {"api_key": "not-needed"}
    with anthropic.Anthropic(
        base_url=server.url, max_retries=0, timeout=DEADLINE_S, **credentials
    ) as client:
        yield client


@contextmanager
def serving_template(folder: Path, chat_template: str) -> Iterator[ServerProcess]:
    make_echo_engine(folder / "echo", chat_template=chat_template)
    with serving(folder) as server:
        yield server
