"""The process that tries grammars: `python -m deepinfer.backends.openvino_trial`.

OpenVINO compiles a grammar in the first step of a request, with every other request waiting, and
one that does not compile takes the whole pipeline down. So each is compiled here before, over the
engine's own tokenizer and a model of next to no size, under a limit of memory. Whoever started
this process counts what it uses of processors, and ends it when that is too much.

Its arguments are the payload and the size of the vocabulary. It reads grammars as JSON, a line
each, and answers each with a line, a `Verdict` as JSON.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from deepinfer.generation import Grammar

MODEL_NAME = "openvino_model.xml"
MAX_GRAMMAR_BYTES = 2 << 30  # beyond what the process has mapped before the first grammar
TRIAL_TOKENS = 24  # drawn at random: some grammars compile at once and take seconds for each step
PR_SET_PDEATHSIG = 1  # linux/prctl.h
EASY = Grammar("ebnf", 'root ::= "a"')
FIELDS = {"regex": "regex", "json": "grammar", "json_schema": "grammar", "ebnf": "grammar"}


class Verdict(msgspec.Struct, frozen=True):
    """What is wrong with a grammar, if anything is, and the memory that it takes once compiled."""

    fault: str | None
    size_bytes: int = 0


def grammar_config(genai: Any, grammar: Grammar) -> Any:
    """The library's own form. EBNF comes first: the library's own JSON may go on for ever."""
    if grammar.ebnf:
        return genai.StructuredOutputConfig(grammar=grammar.ebnf)
    return genai.StructuredOutputConfig(**{FIELDS[grammar.kind]: grammar.text})


def main() -> int:
    payload_dir, vocab_size = Path(sys.argv[1]), int(sys.argv[2])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever the library prints is no answer
    pipeline = _Pipeline(payload_dir, vocab_size)
    pipeline.find_fault(EASY)  # the first grammar of all waits for the tokenizer to be read
    _limit_memory()
    answers.write(msgspec.json.encode(Verdict(None)) + b"\n")
    for line in sys.stdin.buffer:
        grammar = msgspec.json.decode(line, type=Grammar)
        before = _resident_bytes()
        fault = pipeline.find_fault(grammar)
        verdict = Verdict(fault, max(_resident_bytes() - before, 0))
        answers.write(msgspec.json.encode(verdict) + b"\n")
    return 0


class _Pipeline:
    def __init__(self, payload_dir: Path, vocab_size: int) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._genai = openvino_genai
        with tempfile.TemporaryDirectory(prefix="deepinfer-") as folder:
            openvino.save_model(_make_model(vocab_size), Path(folder) / MODEL_NAME)
            for path in payload_dir.iterdir():
                if path.stem != Path(MODEL_NAME).stem:
                    (Path(folder) / path.name).symlink_to(path.resolve())
            self._pipeline = openvino_genai.LLMPipeline(folder, "CPU", ATTENTION_BACKEND="SDPA")
        self._prompt = openvino.Tensor(numpy.array([[0]], dtype=numpy.int64))  # [1, prompt_len]

    def find_fault(self, grammar: Grammar) -> str | None:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = TRIAL_TOKENS
        config.do_sample = True
        config.rng_seed = 0
        config.structured_output_config = grammar_config(self._genai, grammar)
        try:
            self._pipeline.generate(self._prompt, config)
        except Exception as error:
            return _message(error)
        return None


def _make_model(vocab_size: int) -> Any:
    """A model by which every token is equally likely; it has no weights and no state."""
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    token_ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    mask = ops.parameter([-1, -1], np.int64, name="attention_mask")
    beam = ops.parameter([-1], np.int32, name="beam_idx")
    vocab = ops.constant(np.array([vocab_size], dtype=np.int64))
    shape = ops.concat([ops.shape_of(token_ids, output_type="i64"), vocab], 0)
    logits = ops.broadcast(ops.constant(np.float32(0)), shape)  # [1, num_tokens, vocab_size]
    for node in (token_ids, mask, beam):
        node.output(0).set_names({node.get_friendly_name()})
    logits.output(0).set_names({"logits"})
    return openvino.Model([ops.result(logits)], [], [token_ids, mask, beam], "trial")


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MAX_GRAMMAR_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _message(error: Exception) -> str:
    """What the library says, without the place in its sources where it says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in reversed(lines) if "xgrammar" in line), (lines or ["?"])[-1])
    _, _, text = line.rpartition(".cc:")
    return text.lstrip("0123456789: ")[:200]


if __name__ == "__main__":
    sys.exit(main())
