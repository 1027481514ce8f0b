"""docs/api.md names what the schemas have: every field, refused parameter and error code."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepinfer.errors import RequestError
from deepinfer.server import openapi, refused
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.schemas import CompletionBody

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
REFUSED = {*refused.COMPLETION, *refused.CHAT, *refused.MESSAGE, *refused.STREAM_OPTIONS}


@pytest.mark.parametrize("name", sorted({*CompletionBody.model_fields, *ChatBody.model_fields}))
def test_every_field_has_a_row(name: str) -> None:
    assert f"\n| `{name}` | " in PAGE


@pytest.mark.parametrize("name", sorted(REFUSED | set(refused.WITHOUT_EFFECT)))
def test_every_refused_or_ignored_field_is_named(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("kind", openapi.GENERATING_ROUTE, ids=lambda kind: kind.code)
def test_every_code_has_a_row(kind: type[RequestError]) -> None:
    assert f"\n| {kind.status} | `{kind.code}` | " in PAGE
