"""The recorded API as data: one function a question, nothing kept but what the files say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent.parent / "recorded"
ASSUMPTIONS_VARIABLE = "DOUBLE_ASSUMPTIONS"


@cache
def recorded(name: str) -> dict[str, Any]:
    """The record of that name: the content of `recorded/<name>.yaml`."""
    with (FOLDER / f"{name}.yaml").open(encoding="utf-8") as file:
        content: dict[str, Any] = yaml.safe_load(file)
    return content


def names_of_records() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def entries(section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every entry of a section such as `classes`, from all records, with its name."""
    for name in names_of_records():
        yield from recorded(name).get(section, {}).items()


@cache
def entry(section: str, name: str) -> dict[str, Any]:
    return dict(entries(section))[name]


def message(name: str, /, **values: object) -> str:
    """The recorded text of an error or warning, filled in."""
    text: str = recorded("messages")[name]
    return text.format(**values)


def assumed(name: str) -> bool:
    """How the double decides what the record leaves open, unless the environment says otherwise."""
    known: dict[str, Any] = recorded("assumptions")["assumptions"]
    chosen = json.loads(os.environ.get(ASSUMPTIONS_VARIABLE, "{}"))
    value: bool = chosen.get(name, known[name]["value"])
    return value
