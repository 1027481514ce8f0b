"""The examples in docs/clients.md work as they are."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients.conftest import NODE_DIR, ROOT, run

PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
PAGE_URL = "http://127.0.0.1:8000"
# Clients whose requirements clash with those of our own environment.
OWN_ENVIRONMENT = {"instructor", "pydantic-ai", "OpenAI Agents SDK"}


class Block(NamedTuple):
    section: str
    language: str
    text: str


def read_blocks() -> list[Block]:
    blocks = []
    for part in PAGE.split("\n## ")[1:]:
        section = part.split("\n", 1)[0]
        for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", part, re.DOTALL | re.MULTILINE):
            blocks.append(Block(section, language, text))
    return blocks


BLOCKS = read_blocks()


def blocks_in(language: str) -> list[object]:
    found = [block for block in BLOCKS if block.language == language]
    return [pytest.param(block, id=block.section.replace(" ", "-")) for block in found]


@pytest.mark.parametrize("block", blocks_in("python"))
def test_python_example_runs(block: Block, client_python: str, url: str) -> None:
    python = client_python if block.section in OWN_ENVIRONMENT else sys.executable
    assert run([python, "-c", block.text.replace(PAGE_URL, url)], url).strip()


@pytest.mark.parametrize("block", blocks_in("js"))
def test_node_example_runs(block: Block, node: str, url: str) -> None:
    code = block.text.replace(PAGE_URL, url)
    assert run([node, "--input-type=module", "--eval", code], url, NODE_DIR).strip()


@pytest.mark.parametrize("block", blocks_in("java"))
def test_java_example_runs(block: Block, java: str, url: str, tmp_path: Path) -> None:
    source = tmp_path / "Ask.java"
    source.write_text(block.text.replace(PAGE_URL, url), encoding="utf-8")
    assert "data: [DONE]" in run([java, str(source)], url)


def test_settings_are_valid() -> None:
    settings = [block for block in BLOCKS if block.language in ("json", "toml")]
    assert {block.language for block in settings} == {"json", "toml"}
    for block in settings:
        (tomllib if block.language == "toml" else json).loads(block.text)


def test_table_has_every_section() -> None:
    sections = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert re.findall(r"^\| \[(.*?)\]", PAGE, re.MULTILINE) == sections
    assert {block.section for block in BLOCKS} == set(sections)
    assert {block.language for block in BLOCKS} <= {"python", "js", "java", "json", "toml", "sh"}
