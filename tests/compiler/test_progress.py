"""What a running build shows."""

from __future__ import annotations

import io
import re

import pytest

from deepinfer.compiler.progress import LiveProgress, Progress


def test_phase_on_a_terminal_leaves_one_line() -> None:
    stream = io.StringIO()
    progress = LiveProgress(stream)
    with progress.phase("download", "a/model from the hub"):
        progress.advance(2**20, 2**30)
    last = stream.getvalue().splitlines()[-1]
    assert re.fullmatch(r"download  a/model from the hub \(\d+\.\d s\)", last)


def test_phase_in_a_file_is_announced_and_timed() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.phase("load", "weights"):
        progress.advance(1, 2)
        assert stream.getvalue() == "load      weights\n"
    assert re.fullmatch(r"load      done in \d+\.\d s", stream.getvalue().splitlines()[-1])


@pytest.mark.parametrize("kind", [Progress, LiveProgress])
def test_failed_phase_is_not_reported_as_done(kind: type[Progress]) -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), kind(stream).phase("load", "weights"):
        raise RuntimeError
    assert "done in" not in stream.getvalue() and " s)" not in stream.getvalue()
