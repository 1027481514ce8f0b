"""Whether a tokenizer.json can be trusted with the texts of requests.

Its patterns and replacements come from whoever made the checkpoint. A pattern that backtracks makes
the library panic, or compute without end; replacements that grow fill the memory. Neither can be
interrupted, so both are tried when an engine is loaded: `python -m deepinfer.text.tokenizer_check`
does so in a process that can be ended.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import tokenizers

MAX_GROWTH = 64  # of a text by its normalisation; that of Unicode makes 18 characters of one
MAX_SPECIAL_TOKENS = 64  # that are put around a text
MAX_LITERALS = 64  # characters of the patterns themselves that are tried
# Of one run of a character. What backtracks is noticed from 25 on, at times only in short ones.
RUN_LENGTHS = (30, 2_000)
CPU_LIMIT_S = 10  # the patterns of common models need less than one
TIMEOUT_S = 60  # on a machine that is busy with other things
MEMORY_LIMIT_BYTES = 4 * 2**30
OK, REFUSED = 0, 3

# One of each kind of character that patterns name.
RUNS = "aZ5 .-_'\n\t\ré中ー\u0301\U0001f600\x00"


def find_fault(backend: tokenizers.Tokenizer) -> str | None:
    """Why `backend` is not to be used, such as "its patterns ..."; None when it is sound.

    Starts a process, unless there is nothing in it that could be at fault.
    """
    num_special = backend.num_special_tokens_to_add(False)
    if num_special > MAX_SPECIAL_TOKENS:
        return f"it puts {num_special:,} tokens around each text; {MAX_SPECIAL_TOKENS} are allowed"
    normalizer, pre_tokenizer, decoder = (
        None if part is None else json.loads(part.__getstate__())
        for part in (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    )
    for part, what in ((normalizer, "normalisation"), (decoder, "decoding")):
        growth = _growth(part)
        if growth > MAX_GROWTH:
            return (
                f"its {what} makes a text up to {growth:,} times as long; {MAX_GROWTH} is allowed"
            )
    parts = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    if not any(_patterns(part) for part in parts.values()):
        return None
    return _try_out(parts)


def _try_out(parts: dict[str, Any]) -> str | None:
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(parts),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its patterns take more than {TIMEOUT_S} s for ordinary text"
    if done.returncode == OK:
        return None
    if done.returncode == REFUSED:
        return done.stdout.strip()
    return f"its patterns take more than {CPU_LIMIT_S} s or {MEMORY_LIMIT_BYTES >> 30} GiB"


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The parts of a normaliser or the like, those of a sequence one by one."""
    rest = [part]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            yield item
            for name in ("normalizers", "pretokenizers", "decoders"):
                rest += item.get(name) or ()


def _growth(part: Any) -> int:
    """The most characters that one becomes by replacements of literals, all in their turn."""
    factors = []
    for step in _steps(part):
        if step.get("type") == "Replace":
            found = step.get("pattern") or {}
            length = len(found.get("String") or "x")
            factors.append(max(1, math.ceil(len(step.get("content") or "") / length)))
    return math.prod(factors)


def _patterns(part: Any) -> list[str]:
    found = [step.get("pattern") for step in _steps(part)]
    return [
        str(pattern["Regex"])
        for pattern in found
        if isinstance(pattern, dict) and "Regex" in pattern
    ]


def _texts(patterns: list[str]) -> Iterator[str]:
    literals = {char for pattern in patterns for char in pattern if not char.isspace()}
    own = "".join(sorted(literals - set(RUNS))[:MAX_LITERALS])
    # The library looks first whether a character that a match needs is in the text at all.
    ends = ("", "!", f"\x00{own}a\x00")
    for char in (*RUNS, *own):
        for length in RUN_LENGTHS:
            for end in ends:
                yield char * length + end
    for unit in ("a ", "aB1 ", " \n", "a.", "'s", own or "ab"):
        yield unit * (RUN_LENGTHS[-1] // len(unit))


def _report(parts: dict[str, Any]) -> str | None:
    description = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, **parts}
    backend = tokenizers.Tokenizer.from_str(json.dumps(description))
    patterns = [pattern for part in parts.values() for pattern in _patterns(part)]
    for text in _texts(patterns):
        try:
            shown = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
            if len(shown) > MAX_GROWTH * len(text):
                return f"its normalisation makes a text more than {MAX_GROWTH} times as long"
            backend.encode(text)
        except BaseException as error:  # what the library's panics derive from
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            return f"its patterns fail for ordinary text: {' '.join(str(error).split())[:200]}"
    return None


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    fault = _report(json.load(sys.stdin))
    if fault is None:
        return OK
    print(fault)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
