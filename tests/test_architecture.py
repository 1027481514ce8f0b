"""Who may import whom. The borders that ARCHITECTURE.md draws are kept here.

Every import statement of the package is read, at the top of a module and inside functions alike:
an import that is only late, or only for annotations, crosses a border as well.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

from deepinfer.commands import SUMMARIES

PACKAGE = Path(__file__).parent.parent / "deepinfer"

BASE = [
    *("errors", "device", "generation", "engine", "validation", "logs"),
    *("precedence", "process", "huge_pages", "tasks", "temp_folders"),
]
RECORDS = [
    *("weights", "checkpoint", "manifest", "adapter", "config", "config_layers"),
    *("trtllm_release", "trtllm_libraries", "serving_limits"),
]
LOW = [*BASE, *RECORDS]
TEXT = ["text.*"]
# The API process's half of the runtime.
CLIENT = ["runtime.wire", "runtime.client", "runtime.handle"]
CLIENT_PARTS = [*CLIENT, "runtime.resume", "runtime.supervisor"]

# Module, and what of ours it may import; names are below `deepinfer`, the first match counts.
RULES: dict[str, list[str]] = {
    **{name: [] for name in BASE},
    "logs": ["validation"],
    "weights": BASE,
    "checkpoint": [*BASE, "weights"],
    "manifest": BASE,
    "adapter": [*BASE, "weights", "checkpoint", "manifest"],
    "trtllm_release": BASE,
    "serving_limits": [*BASE, "checkpoint", "manifest"],
    "trtllm_libraries": [*BASE, "trtllm_release"],
    "config": BASE,
    "config_layers": [*BASE, "config"],
    "text.*": [*LOW, "text.*"],
    "compiler.*": [*LOW, "terminal", "compiler.*"],
    "backends.*": [*LOW, "backends.*"],
    "runtime.wire": LOW,
    "runtime.queue": LOW,
    "runtime.engine_process": [*LOW, "runtime.wire", "runtime.queue", "backends.*"],
    **{name: [*LOW, *CLIENT_PARTS] for name in CLIENT_PARTS},
    "server.*": [*LOW, *TEXT, *CLIENT, "server.*"],
    "terminal": BASE,
    "doctor.*": [*LOW, "terminal", "doctor.*"],
    # Peers are measured by the same client, so it knows no server.
    "bench.*": [*LOW, "terminal", "runtime.client", "bench.*"],
    "commands.*": ["*"],
    "cli": ["commands", "logs", "validation"],
    "__main__": ["cli", "errors", "validation"],
}

# Libraries that take long to load or exist on some machines only.
HEAVY = {
    "fastapi",
    "huggingface_hub",
    "nncf",
    "openvino",
    "openvino_genai",
    "openvino_tokenizers",
    "optimum",
    "pynvml",
    "starlette",
    "tensorrt",
    "tensorrt_llm",
    "torch",
    "transformers",
    "uvicorn",
}
SERVER_LIBRARIES = {"fastapi", "starlette", "uvicorn"}
MODEL_LIBRARIES = HEAVY - SERVER_LIBRARIES - {"huggingface_hub", "pynvml"}
# What may be loaded at the top of a module because the module itself is loaded late.
HEAVY_AT_TOP = {"server.*": SERVER_LIBRARIES, "backends.openvino": MODEL_LIBRARIES}
HOME_OF_MODEL_LIBRARIES = ("compiler.*", "backends.*")
# multiprocessing is here because it pickles whatever it sends.
PICKLING = {"cloudpickle", "dill", "marshal", "multiprocessing", "pickle", "shelve"}


@dataclass(frozen=True)
class Import:
    """One imported module: of ours below `deepinfer`, or the top-level name of a library."""

    name: str
    is_ours: bool
    is_at_top: bool
    is_for_types: bool
    line: int


@cache
def modules() -> dict[str, Path]:
    """Every module by its name below `deepinfer`; a package by its folder's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


def is_package(name: str) -> bool:
    return modules()[name].name == "__init__.py"


def matches(name: str, patterns: list[str] | tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def rule_for(name: str) -> list[str] | None:
    if is_package(name):
        return []
    return next((RULES[pattern] for pattern in RULES if fnmatchcase(name, pattern)), None)


@cache
def imports_of(name: str) -> tuple[Import, ...]:
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    return tuple(_walk(tree, is_at_top=True, is_for_types=False))


def _walk(node: ast.AST, *, is_at_top: bool, is_for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            for target in _targets(child):
                is_ours = target == "deepinfer" or target.startswith("deepinfer.")
                shown = target.removeprefix("deepinfer").removeprefix(".")
                name = shown if is_ours else target.split(".")[0]
                yield Import(name, is_ours, is_at_top, is_for_types, child.lineno)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_type_block = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        yield from _walk(
            child,
            is_at_top=is_at_top and not is_function,
            is_for_types=is_for_types or is_type_block,
        )


def _targets(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The modules that one statement imports; `from package import name` may mean either."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    assert statement.level == 0 and statement.module, "imports are absolute here"
    for alias in statement.names:
        full_name = f"{statement.module}.{alias.name}"
        is_module = full_name.removeprefix("deepinfer.") in modules()
        yield full_name if is_module else statement.module


EVERY_MODULE = pytest.mark.parametrize("name", modules(), ids=lambda name: name or "deepinfer")


def listed(name: str, crossing: list[Import]) -> list[str]:
    return [f"{modules()[name].name}:{one.line} imports {one.name}" for one in crossing]


@EVERY_MODULE
def test_module_says_what_it_owns(name: str) -> None:
    assert ast.get_docstring(ast.parse(modules()[name].read_text(encoding="utf-8")))


@EVERY_MODULE
def test_module_imports_only_what_is_below_it(name: str) -> None:
    allowed = rule_for(name)
    assert allowed is not None, f"`{name}` has no place in RULES: say what it may import"
    # The package itself holds the version only, which anybody may read.
    ours = [one for one in imports_of(name) if one.is_ours and one.name != ""]
    assert listed(name, [one for one in ours if not matches(one.name, allowed)]) == []


@EVERY_MODULE
def test_heavy_library_is_imported_inside_the_function_that_needs_it(name: str) -> None:
    late = {pattern: HEAVY_AT_TOP[pattern] for pattern in HEAVY_AT_TOP if matches(name, [pattern])}
    allowed = set().union(*late.values())
    heavy = [one for one in imports_of(name) if one.is_at_top and one.name in HEAVY - allowed]
    assert listed(name, [one for one in heavy if not one.is_for_types]) == []


@EVERY_MODULE
def test_libraries_of_models_stay_in_compiler_and_backends(name: str) -> None:
    strays = [one for one in imports_of(name) if one.name in MODEL_LIBRARIES and not one.is_ours]
    assert matches(name, HOME_OF_MODEL_LIBRARIES) or listed(name, strays) == []


def test_tensorrt_llm_is_imported_by_its_compiler_and_its_backend_only() -> None:
    importing = [
        name
        for name in modules()
        if any(one.name == "tensorrt_llm" and not one.is_ours for one in imports_of(name))
    ]
    assert importing == ["backends.tensorrt_llm", "compiler.tensorrt_llm"]


@EVERY_MODULE
def test_nothing_is_pickled(name: str) -> None:
    assert listed(name, [one for one in imports_of(name) if one.name in PICKLING]) == []


@pytest.mark.parametrize("name", BASE)
def test_base_needs_the_standard_library_only(name: str) -> None:
    libraries = {
        one.name
        for one in imports_of(name)
        if not one.is_ours and one.name not in sys.stdlib_module_names
    }
    assert libraries <= {
        "device": {"pynvml"},
        "generation": {"msgspec"},
        "engine": {"msgspec"},
    }.get(name, set())


@pytest.mark.parametrize("command", SUMMARIES)
def test_command_imports_what_it_needs_inside_its_body(command: str) -> None:
    early = [
        one
        for one in imports_of(f"commands.{command}")
        if one.is_at_top and not one.is_for_types and one.name not in sys.stdlib_module_names
    ]
    assert {one.name for one in early} == {"click"}


def test_rules_name_no_module_that_is_gone() -> None:
    names = [name for name in modules() if not is_package(name)]
    assert [pattern for pattern in RULES if not any(matches(n, [pattern]) for n in names)] == []


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running `code`."""
    program = f"{code}\nimport json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def import_all(*patterns: str) -> str:
    names = [name for name in modules() if matches(name, patterns)]
    assert names
    return "\n".join(f"import deepinfer.{name}" for name in names)


def test_help_of_every_command_loads_no_heavy_library() -> None:
    helps = [["--help"], *([name, "--help"] for name in SUMMARIES)]
    loaded = loaded_by(
        f"from deepinfer.__main__ import main\nfor a in {helps}: assert main(a) == 0"
    )
    assert loaded & HEAVY == set()


def test_api_process_loads_no_backend_no_compiler_and_no_library_of_models() -> None:
    loaded = loaded_by(import_all("server.*", *TEXT, *CLIENT))
    assert loaded & MODEL_LIBRARIES == set()
    ours = {name.removeprefix("deepinfer.") for name in loaded if name.startswith("deepinfer.")}
    assert [name for name in ours if matches(name, ["backends*", "compiler*"])] == []


def test_engine_process_loads_nothing_about_text_or_http() -> None:
    loaded = loaded_by(import_all("runtime.engine_process"))
    assert loaded & {*SERVER_LIBRARIES, "tokenizers", "jinja2", "transformers"} == set()
    assert [
        name for name in loaded if name.startswith(("deepinfer.text", "deepinfer.server"))
    ] == []
