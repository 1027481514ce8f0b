"""A log line is text or one JSON object, and has its request either way."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from deepinfer import logs

MOMENT = 1767268800.1234  # 2026-01-01T12:00:00.123Z


@pytest.fixture
def restored() -> Iterator[None]:
    """The root logger as it was before `configure`."""
    root = logging.getLogger()
    quieted = [logging.getLogger(name) for name in ("uvicorn", "asyncio")]
    handlers, levels = root.handlers[:], [one.level for one in (root, *quieted)]
    yield
    root.handlers[:] = handlers
    for one, level in zip((root, *quieted), levels, strict=True):
        one.setLevel(level)


def record(message: str, *values: object, **attributes: object) -> logging.LogRecord:
    made = logging.LogRecord("deepinfer.x", logging.INFO, "x.py", 1, message, values, None)
    made.created, made.msecs = MOMENT, 0.0
    made.__dict__.update(attributes)
    return made


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = logs.JsonFormatter().format(made)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_json_line_has_what_every_line_has() -> None:
    assert as_json(record("%d of %s", 2, "three")) == {
        "time": "2026-01-01T12:00:00.123Z",
        "level": "info",
        "logger": "deepinfer.x",
        "message": "2 of three",
    }


def test_json_line_of_a_request_has_its_id() -> None:
    token = logs.current_request_id.set("req-1")
    try:
        assert as_json(record("x"))["request_id"] == "req-1"
    finally:
        logs.current_request_id.reset(token)


def test_fields_are_keys_and_replace_no_other() -> None:
    line = as_json(record("x", **logs.with_fields({"status": 200, "level": "fake", "at": object})))
    assert (line["status"], line["level"]) == (200, "info")
    assert line["at"] == str(object)  # what JSON has no form for is named


def test_fields_leave_text_as_it_is() -> None:
    plain, rich = record("x"), record("x", **logs.with_fields({"status": 200}))
    assert logs.RequestFormatter().format(plain) == logs.RequestFormatter().format(rich)


@pytest.mark.parametrize("message", ["two\nlines", "a \u2028 b", 'a "quote"', "\ud800"], ids=ascii)
def test_any_message_stays_one_line(message: str) -> None:
    line = logs.JsonFormatter().format(record(message))
    assert line.isascii() and len(line.splitlines()) == 1
    assert json.loads(line)["message"] == message


def test_traceback_is_a_string_of_its_line() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        line = as_json(record("failed", exc_info=sys.exc_info()))
    assert line["message"] == "failed"
    assert line["exception"].startswith("Traceback") and line["exception"].endswith("why")


@pytest.mark.usefixtures("restored")
def test_configured_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    assert logs.active_format() == "text"
    logs.configure("warning", "json")
    assert logs.active_format() == "json"
    logging.getLogger("deepinfer.x").info("not this")
    logging.getLogger("deepinfer.x").warning("but this")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "but this"
