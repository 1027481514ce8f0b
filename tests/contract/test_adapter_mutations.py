"""Renaming a keyword that the adapter passes, or dropping an explicit limit, fails the contract.

Each mutation is made in the source of the compiler or the backend, and the damaged copy is run
against the double as the whole one is. A mutation that passes would mean that nothing looks at what
it changed. Mistakes that were once made with the library are put back one by one as well.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest

from deepinfer.backends import tensorrt_errors as errors_module
from deepinfer.backends import tensorrt_llm as backend_module
from deepinfer.backends import tensorrt_reader as reader_module
from deepinfer.backends import tensorrt_settings as settings_module
from deepinfer.checkpoint import read_checkpoint
from deepinfer.compiler import tensorrt_llm as compiler_module
from deepinfer.compiler.options import BuildOptions
from deepinfer.compiler.plan import make_plan
from deepinfer.compiler.plan_types import BuildPlan
from deepinfer.compiler.targets import resolve_target
from deepinfer.device import read_machine
from deepinfer.manifest import (
    EngineFolder,
    EngineLimits,
    EngineManifest,
    record_files,
    write_manifest,
)
from deepinfer.serving_limits import with_max_seq_len
from tests.building import BuildEngine
from tests.contract.adapter_contract import (
    NCCL,
    Build,
    check_build,
    check_contract,
    check_faults,
    check_serving,
)
from tests.contract.installing import installed_double, make_double_root
from tests.contract.loading import write_code

LIMITS = tuple(EngineLimits.model_fields)
MODULES = {
    "compiler": compiler_module,
    "backend": backend_module,
    "settings": settings_module,
}
# In the order in which they import each other.
COPIED_MODULES = {
    "errors": errors_module,
    "reader": reader_module,
    **dict(reversed(MODULES.items())),
}
# Keywords of functions of our own or of the standard library, which the library never sees.
OWN_CALLS = {"dataclass", "Capacity", "SamplingParams", "GenerationRequest", "model_copy", "mkdir"}
OWN_CALLS |= {"Thread", "TemporaryDirectory"}
OWN_KEYWORDS = {"parents", "exist_ok", "hint", "param", "default_factory", "encoding", "update"}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, build_engine: BuildEngine) -> Iterator[Build]:
    with installed_double(make_double_root(tmp_path_factory.mktemp("double"))):
        limits = ("--max-seq-len", "256", "--max-batch-size", "16", "--max-num-tokens", "512")
        adapters = ("--max-lora-rank", "8", "--max-loras", "3")
        flags = (*limits, *adapters, "--target", "rtx5090", "--gather-logits")
        built = build_engine("llama", "fp8", *flags)
        # Values that are not the library's defaults, so that leaving one out shows.
        settings = built.engine.manifest.backend.settings | NCCL | {"block_reuse": False}
        backend = built.engine.manifest.backend.model_copy(update={"settings": settings})
        _clip_max_input_len(built.engine)
        write_code(built.engine.tokenizer_dir, "AutoTokenizer", built.engine.path / "marks")
        files = record_files(built.engine.path)
        model = built.engine.manifest.model.model_copy(update={"trust_remote_code": True})
        changes = {"backend": backend, "files": files, "model": model}
        manifest = built.engine.manifest.model_copy(update=changes)
        manifest = EngineManifest.model_validate(manifest.model_dump())
        write_manifest(built.engine.path, manifest)
        engine = built.engine.model_copy(update={"manifest": manifest})
        engine = with_max_seq_len(engine, 192)  # so that the payload's own does not pass for it
        yield Build(_plan(built.checkpoint), read_checkpoint(built.checkpoint), engine)


def _clip_max_input_len(engine: EngineFolder) -> None:
    """The library may write another one than it was told, and has no use for it either way."""
    path = engine.payload_dir / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["build_config"]["max_input_len"] = 128
    path.write_text(json.dumps(config), encoding="utf-8")


def _plan(checkpoint: Path) -> BuildPlan:
    options = BuildOptions(
        model=str(checkpoint),
        target="rtx5090",
        precision="fp8",
        max_seq_len=256,
        max_batch_size=16,
        max_num_tokens=512,
        gather_logits=True,
        max_lora_rank=8,
        max_loras=3,
    )
    device = resolve_target(options.target, read_machine(), 2**40, has_tensorrt_llm=True)
    plan = make_plan(device, read_checkpoint(checkpoint), options)
    assert plan.tensorrt_llm is not None
    settings = plan.tensorrt_llm.model_copy(update={"nccl_env": NCCL})
    return plan.model_copy(update={"tensorrt_llm": settings})


@dataclass(frozen=True)
class Mutation:
    """One change of one module: what it does to the tree's node at `place`."""

    module: str
    place: tuple[int, int]  # line and column
    name: str
    kind: str  # "rename" or "drop"

    def __str__(self) -> str:
        return f"{self.kind} {self.name} at {self.module}:{self.place[0]}"


def find_mutations() -> Iterator[Mutation]:
    for module, loaded in MODULES.items():
        tree = ast.parse(_source(loaded))
        for node in ast.walk(tree):
            yield from _mutations_of(module, node)


def _source(module: ModuleType) -> str:
    assert module.__file__ is not None
    return Path(module.__file__).read_text(encoding="utf-8")


def _mutations_of(module: str, node: ast.AST) -> Iterator[Mutation]:
    if isinstance(node, ast.Call) and _called_name(node) not in OWN_CALLS:
        for keyword in node.keywords:
            place = (keyword.lineno, keyword.col_offset)
            if keyword.arg is None and _is_limits(keyword.value):
                for limit in LIMITS:
                    yield Mutation(module, place, limit, "drop")
            elif keyword.arg is not None and keyword.arg not in OWN_KEYWORDS:
                yield Mutation(module, place, keyword.arg, "rename")
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield Mutation(module, (key.lineno, key.col_offset), key.value, "rename")
            elif key is None and _is_limits(value):
                for limit in LIMITS:
                    yield Mutation(module, (value.lineno, value.col_offset), limit, "drop")
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        key = node.slice
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield Mutation(module, (key.lineno, key.col_offset), key.value, "rename")


def _called_name(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        library = ast.unparse(node.func.value)
        return "" if library.endswith("library") else node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _is_limits(node: ast.expr) -> bool:
    text = ast.unparse(node)
    return text == "limits" or text.endswith("limits.model_dump()")


@dataclass(frozen=True)
class Mistake:
    """A piece of one module's source, and what it was, or might be taken for."""

    module: str
    source: str
    mistake: str
    check: Callable[[ModuleType, Build], None] = check_faults


MISTAKES = {
    "log probabilities are added up": Mistake(
        "backend", "output.use_trtllm_sampler = True", "pass", check_serving
    ),
    "statistics that fail end the engine": Mistake(
        "backend",
        "except Exception as error:  # each kind",
        "except LookupError as error:  #",
        check_serving,
    ),
    "variables are set after the import": Mistake(
        "backend",
        "os.environ.update(process_environment(manifest))\n        library = Library.load()",
        "library = Library.load()\n        os.environ.update(process_environment(manifest))",
        check_serving,
    ),
    "the Hub is asked": Mistake("settings", '"HF_HUB_OFFLINE": "1"', "", check_serving),
    "code is trusted as the build was told": Mistake(
        "settings",
        '"trust_remote_code": False',
        '"trust_remote_code": manifest.model.trust_remote_code',
        check_serving,
    ),
    "the tokenizer is loaded as it is": Mistake(
        "backend", "planned, Path(name))", "planned, engine.tokenizer_dir)", check_serving
    ),
    "code in a payload is run": Mistake("settings", "if names_code:", "if False:"),
    "a broken GPU fails requests only": Mistake(
        "errors",
        "return any(_DEAD_ENGINE.search(line)",
        "return False and any(_DEAD_ENGINE.search(line)",
    ),
    "a grammar's text is taken for the device's": Mistake(
        "errors", "if any(_OF_XGRAMMAR.search(text) for text in texts):", "if False:"
    ),
    "the last line of a trace is the message": Mistake(
        "errors", "if line and not _BELOW.match(line)", "if line"
    ),
    "an exception of one output ends the engine": Mistake(
        "reader", "else self.find_executor_fault()", "else describe(error)"
    ),
    "an output that cannot be read runs on": Mistake(
        "reader",
        "if not stream.is_aborted:\n            self._end_early(stream)\n        return",
        "return",
    ),
    "a wrong grammar fails its neighbours": Mistake(
        "reader", "finish_reason=FinishReason.INTERRUPTED", "finish_reason=FinishReason.ERROR"
    ),
    "silence is waited out": Mistake("reader", "self._check_silence(time.monotonic())", "pass"),
    "a dead executor is not looked for": Mistake(
        "reader", "self._fault = self.find_executor_fault()", "pass"
    ),
}


class _Mutator(ast.NodeTransformer):
    def __init__(self, mutation: Mutation) -> None:
        self.mutation = mutation
        self.has_changed = False

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        self.generic_visit(node)
        if (node.lineno, node.col_offset) == self.mutation.place:
            self.has_changed = True
            if self.mutation.kind == "rename":
                node.arg = f"{node.arg}_renamed"
            else:
                node.value = _without(node.value, self.mutation.name)
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.Dict:
        self.generic_visit(node)
        for i, (key, value) in enumerate(zip(node.keys, node.values, strict=True)):
            if key is None and (value.lineno, value.col_offset) == self.mutation.place:
                self.has_changed = True
                node.values[i] = _without(value, self.mutation.name)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        is_named = node.value == self.mutation.name and self.mutation.kind == "rename"
        if is_named and (node.lineno, node.col_offset) == self.mutation.place:
            self.has_changed = True
            return ast.copy_location(ast.Constant(f"{node.value}_renamed"), node)
        return node


def _without(limits: ast.expr, name: str) -> ast.expr:
    text = f"{{k: v for k, v in ({ast.unparse(limits)}).items() if k != {name!r}}}"
    return ast.copy_location(ast.parse(text, mode="eval").body, limits)


@contextmanager
def mutated(mutation: Mutation | Mistake) -> Iterator[dict[str, ModuleType]]:
    """Fresh copies of the adapter's modules, one of them damaged."""
    names = {key: module.__name__ for key, module in COPIED_MODULES.items()}
    saved = {name: sys.modules[name] for name in names.values()}
    copies: dict[str, ModuleType] = {}
    try:
        for key, module in COPIED_MODULES.items():
            source = _source(module)
            if key == mutation.module and isinstance(mutation, Mistake):
                assert source.count(mutation.source) == 1, mutation.source
                source = source.replace(mutation.source, mutation.mistake)
            tree = ast.parse(source)
            if key == mutation.module and isinstance(mutation, Mutation):
                mutator = _Mutator(mutation)
                tree = ast.fix_missing_locations(mutator.visit(tree))
                assert mutator.has_changed, mutation
            copy = ModuleType(names[key])
            copy.__file__ = module.__file__
            sys.modules[names[key]] = copies[key] = copy
            exec(compile(tree, names[key], "exec"), copy.__dict__)
        yield copies
    finally:
        sys.modules.update(saved)


NOTHING = Mutation("", (0, 0), "", "rename")
MUTATIONS = sorted(find_mutations(), key=lambda m: (m.module, m.place, m.name))


def test_adapter_as_it_is_keeps_the_contract(build: Build) -> None:
    with mutated(NOTHING) as copies:
        check_contract(copies["compiler"], copies["backend"], build)
        check_faults(copies["backend"], build)


def test_mutations_cover_every_limit_at_each_place_it_is_said() -> None:
    drops = [m for m in MUTATIONS if m.kind == "drop"]
    places = {(m.module, m.place) for m in drops}
    assert (
        len(places) == 3
    )  # the engine's build, the executor of the build, the executor of serving
    assert len(drops) == 3 * len(LIMITS)
    assert len(MUTATIONS) > 80


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_damaged_adapter_breaks_the_contract(build: Build, mutation: Mutation) -> None:
    check: Callable[..., None] = check_build if mutation.module == "compiler" else check_serving
    key = "compiler" if mutation.module == "compiler" else "backend"
    with mutated(mutation) as copies, pytest.raises(Exception) as caught:
        check(copies[key], replace(build))
    assert not isinstance(caught.value, NameError | SyntaxError), caught.value


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistake_put_back_breaks_the_contract(build: Build, mistake: Mistake) -> None:
    with mutated(mistake) as copies, pytest.raises(Exception) as caught:
        mistake.check(copies["backend"], build)
    assert not isinstance(caught.value, NameError | SyntaxError), caught.value
