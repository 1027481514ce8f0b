"""Whole answers as JSON."""

from __future__ import annotations

from starlette.responses import Response

from deepinfer.server.answers import Answer


def json_response(answer: Answer) -> Response:
    return Response(answer.model_dump_json().encode(), media_type="application/json")
