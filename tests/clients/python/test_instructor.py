"""instructor: a Python type as the answer, by each way that it has of asking for one."""

from __future__ import annotations

from typing import Literal

import instructor
import openai
import pytest
from conftest import MAX_TOKENS, MODELS
from instructor.core.exceptions import InstructorRetryException
from pydantic import BaseModel, Field

MODES = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.RESPONSES_TOOLS]


class Fact(BaseModel):
    """A fact about a place."""

    is_true: bool
    year: int  # as large as it likes
    share: float = Field(ge=0, le=1)
    kind: Literal["river", "mountain"]


@pytest.fixture(params=MODES, ids=lambda mode: mode.name)
def client(request: pytest.FixtureRequest) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(max_retries=0), mode=request.param)


def limits(client: instructor.Instructor) -> dict[str, int]:
    is_response = client.mode is instructor.Mode.RESPONSES_TOOLS
    return {"max_output_tokens" if is_response else "max_tokens": MAX_TOKENS}


@pytest.mark.parametrize("model", MODELS)
def test_answer_is_of_its_type(client: instructor.Instructor, model: str) -> None:
    messages = [{"role": "user", "content": "A fact?"}]
    fact = client.create(
        model=model, messages=messages, response_model=Fact, max_retries=0, **limits(client)
    )
    assert isinstance(fact, Fact)


def test_error_of_the_server_is_the_cause(client: instructor.Instructor) -> None:
    messages = [{"role": "user", "content": "A fact?"}]
    with pytest.raises((InstructorRetryException, openai.NotFoundError)) as caught:
        client.create(model="gone", messages=messages, response_model=Fact, max_retries=0)
    assert "gone" in str(caught.value)
