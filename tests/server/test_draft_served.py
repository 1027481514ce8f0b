"""A server whose engine has a draft: it answers greedy requests over HTTP, and refuses others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.building import BuildEngine
from tests.server.serving import ServerProcess, client_of, serving
from tests.server.test_bad_requests import assert_error

LIMITS = ("--max-seq-len", "256", "--max-batch-size", "8")
BODY = {"prompt": "one two three one two", "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def drafted(build_engine: BuildEngine) -> Iterator[ServerProcess]:
    engine = build_engine("llama", "fp32", *LIMITS).engine
    draft = build_engine("llama", "int4", "--max-seq-len", "256").engine
    with serving(engine.path, "--draft-engine", str(draft.path)) as server:
        yield server


def test_greedy_answers_are_those_of_the_engine_alone(
    drafted: ServerProcess, build_engine: BuildEngine
) -> None:
    with serving(build_engine("llama", "fp32", *LIMITS).engine.path) as alone:
        answers = []
        for server in (alone, drafted):
            with client_of(server) as client:
                answers.append(client.post("/v1/completions", json=BODY).json()["choices"])
    assert answers[0] == answers[1]
    assert answers[0][0]["finish_reason"] == "length"


def test_sampled_request_is_refused_by_name(drafted: ServerProcess) -> None:
    with client_of(drafted) as client:
        response = client.post("/v1/completions", json=BODY | {"temperature": 0.7})
        message = assert_error(response, 400, "unsupported_parameter", "temperature")
    assert "`--draft-engine`" in message


def test_request_that_is_shown_at_the_start_is_answered(drafted: ServerProcess) -> None:
    shown = drafted.log.split("Base URL")[1]
    [route] = re.findall(r"curl \S+(/v1/\S+)", shown)
    [body] = re.findall(r"-d '(.+)'", shown)
    with client_of(drafted) as client:
        response = client.post(route, json=json.loads(body))
    assert response.status_code == 200
    assert "temperature=0" in shown
