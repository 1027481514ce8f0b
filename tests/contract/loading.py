"""Checkpoints, engines and requests for the tests of the double, short enough to read in a test."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.contract.double.tokenizer import CODE_CLASS
from tests.contract.installing import REPOSITORY, installed_double

SAMPLE = REPOSITORY / "deepinfer" / "sample"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
LIMITS = {
    "max_batch_size": 4,
    "max_num_tokens": 512,
    "max_input_len": 255,
    "max_seq_len": 256,
    "max_beam_width": 1,
}
END_ID = 1
PROMPT = [10, 11, 12]


def write_checkpoint(folder: Path, **changes: object) -> Path:
    """The sample's configuration, with changes, and its tokenizer; no weights."""
    config = json.loads((SAMPLE / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(SAMPLE / name, folder / name)
    return folder


def write_texts(folder: Path, column: str = "text") -> Path:
    """A data set to calibrate with."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({column: f"Line {number} of a text."}) for number in range(4)]
    (folder / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def write_code(folder: Path, kind: str, marks: Path) -> None:
    """Have a folder's configuration name a Python file that appends to `marks` when it is run."""
    name = "config.json" if kind == "AutoConfig" else "tokenizer_config.json"
    config = read_json(folder / name)
    config["auto_map"] = {kind: f"code_{kind}.Class"}
    if kind == "AutoTokenizer":
        config["tokenizer_class"] = CODE_CLASS
    (folder / name).write_text(json.dumps(config), encoding="utf-8")
    code = f"with open({str(marks)!r}, 'a') as file:\n    file.write({kind + ' '!r})\n"
    (folder / f"code_{kind}.py").write_text(code, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


class Loader:
    """Calls LLM and shuts down what it made. Timing caches go to a folder of their own."""

    def __init__(self) -> None:
        self._made: list[Any] = []
        self._folder = tempfile.TemporaryDirectory()

    def __call__(self, model: Path | str, **arguments: Any) -> Any:
        from tensorrt_llm._tensorrt_engine import LLM

        made = LLM(model=str(model), **arguments)
        self._made.append(made)
        return made

    def build_config(self, **values: Any) -> Any:
        from tensorrt_llm.llmapi import BuildConfig

        cache = str(Path(self._folder.name) / "timing.cache")
        return BuildConfig(output_timing_cache=cache, **values)

    def build(self, model: Path, folder: Path, **arguments: Any) -> dict[str, Any]:
        """Build with LIMITS, save into `folder` and return its config.json."""
        config = arguments.pop("build_config", None) or self.build_config(**LIMITS)
        self(model, build_config=config, **arguments).save(str(folder))
        return read_json(folder / "config.json")

    def close(self) -> None:
        for made in self._made:
            made.shutdown()
        self._folder.cleanup()


@contextmanager
def loader_on(root: Path, **machine: Any) -> Iterator[Loader]:
    """A Loader on another machine than the usual one; arguments as of `installed_double`."""
    with installed_double(root, **machine):
        loader = Loader()
        try:
            yield loader
        finally:
            loader.close()


def params(**values: Any) -> Any:
    """SamplingParams as a server would make them: token ids only, and an end that never comes."""
    from tensorrt_llm.llmapi import SamplingParams

    return SamplingParams(**{"end_id": END_ID, "ignore_eos": True, "detokenize": False} | values)


def ids(llm: Any, prompt: list[int] = PROMPT, **values: Any) -> list[int]:
    answer: list[int] = llm.generate(prompt, params(**values)).outputs[0].token_ids
    return answer


async def steps(llm: Any, prompt: list[int] = PROMPT, **values: Any) -> list[tuple[list[int], Any]]:
    """Each step's new tokens and finish reason."""
    result = llm.generate_async(prompt, params(**values), streaming=True)
    return [
        (step.outputs[0].token_ids_diff, step.outputs[0].finish_reason) async for step in result
    ]
