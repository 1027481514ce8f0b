"""The log of a build: all that libraries say is in it, and what matters of it is shown."""

from __future__ import annotations

import io
import logging
import sys
import tracemalloc
import warnings
from pathlib import Path

import pytest

from deepinfer.compiler.build_log import (
    MAX_ACCURACY_WARNINGS,
    TAIL_LINES,
    TRACEBACK_MARK,
    BuildLog,
)
from deepinfer.compiler.progress import Progress


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildLog:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return BuildLog.create(tmp_path / "engines" / "some-engine")


def write(log: BuildLog, *lines: str) -> None:
    log.path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_log_lies_in_the_cache_under_the_engines_name(log: BuildLog, tmp_path: Path) -> None:
    assert log.path.is_relative_to(tmp_path / "cache" / "deepinfer")
    assert "some-engine" in log.path.name
    other = BuildLog.create(tmp_path / "others" / "some-engine")
    assert other.path != log.path, "another folder of engines"


def test_cache_that_cannot_be_written_leaves_a_temporary_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log = BuildLog.create(tmp_path / "engine")
    try:
        assert log.path.is_file() and log.tail() == []
    finally:
        log.path.unlink()


def test_everything_that_libraries_say_is_kept_and_nothing_shown(
    log: BuildLog, capsys: pytest.CaptureFixture[str]
) -> None:
    library = logging.getLogger("nncf.some.module")
    bound_early = logging.StreamHandler(sys.stderr)
    logging.getLogger("nncf").addHandler(bound_early)
    progress = Progress()
    try:
        with log.capture():
            print("printed")
            print("printed to stderr", file=sys.stderr)
            warnings.warn("warned", UserWarning, stacklevel=1)
            library.info("logged")
            progress.write("load")
    finally:
        logging.getLogger("nncf").removeHandler(bound_early)
    text = "\n".join(log.tail())
    for said in ("printed", "printed to stderr", "UserWarning: warned", "logged"):
        assert said in text
    assert capsys.readouterr() == ("", "load\n")


def test_handlers_of_libraries_are_put_back(log: BuildLog) -> None:
    library = logging.getLogger("transformers")
    before = (list(library.handlers), library.level, library.propagate)
    with pytest.raises(RuntimeError), log.capture():
        raise RuntimeError
    assert (list(library.handlers), library.level, library.propagate) == before


def test_followed_log_is_shown_whole(log: BuildLog) -> None:
    stream = io.StringIO()
    with log.follow(stream), log.path.open("a") as file:
        file.write("first\n")
        file.flush()
        file.write("last")
    assert stream.getvalue() == "first\nlast"


def test_tail_is_short_and_plain(log: BuildLog) -> None:
    write(
        log,
        *(f"line {number}" for number in range(100)),
        "\x1b[31mred\x1b[0m\x07 \x1b]0;title\x07.",
    )
    tail = log.tail()
    assert len(tail) == TAIL_LINES
    assert tail[-1] == "red ." and tail[-2] == "line 99"


def test_progress_bar_counts_as_what_it_showed_last(log: BuildLog) -> None:
    write(log, "calibrating 1/3\rcalibrating 2/3\rcalibrating 3/3", "done\r")
    assert log.tail() == ["calibrating 3/3", "done"]


@pytest.mark.parametrize(
    "line",
    [
        # modelopt 0.37, export/quant_utils.py and export/postprocess.py
        "/x/quant_utils.py:350: UserWarning: Warning: Large KV activation detected: 2.5, "
        "Quantized KV cache may lead to higher accuracy drop.",
        "[TRT-LLM] [WARNING] FP8 KV cache may cause accuracy regressions",
        "[TensorRT-LLM][WARNING] the value overflows",
        "nncf WARNING: weights contain NaN",
    ],
)
def test_warning_about_accuracy_is_found(log: BuildLog, line: str) -> None:
    write(log, "Loading weights", line, '  warn("accuracy")', line, "Done")
    (found,) = log.accuracy_warnings()
    assert line.endswith(found) and not found.startswith("/")


@pytest.mark.parametrize(
    "line",
    [
        "[TRT-LLM] [INFO] max accuracy of the timing cache",
        "transformers INFO: loading accuracy.json",
        '  File "/x/accuracy.py", line 3, in check',
        "a nanosecond",
        # modelopt 0.37, of an LM head whose quantiser is off
        "/x/postprocess.py:745: UserWarning: Enable lm_head quantization. lm_head quantization may "
        "lead to additional accuracy loss.",
    ],
)
def test_other_lines_are_no_warnings(log: BuildLog, line: str) -> None:
    write(log, line)
    assert log.accuracy_warnings() == []


def test_many_warnings_end_in_a_count(log: BuildLog) -> None:
    write(log, *(f"overflow in layer {number}" for number in range(MAX_ACCURACY_WARNINGS + 5)))
    shown = log.accuracy_warnings()
    assert len(shown) == MAX_ACCURACY_WARNINGS + 1
    assert "5 more" in shown[-1] and str(log.path) in shown[-1]


def test_log_of_any_length_costs_little_memory(log: BuildLog) -> None:
    line = "[TensorRT-LLM][INFO] layer 7: a line of the usual length, with a number or two: 42\n"
    with log.path.open("w", encoding="utf-8") as file:
        file.writelines(line for _ in range(100_000))
        file.write("overflow in the last layer\n")
    tracemalloc.start()
    try:
        assert log.accuracy_warnings() == ["overflow in the last layer"]
        assert log.tail()[-1] == "overflow in the last layer"
        assert tracemalloc.get_traced_memory()[1] < log.path.stat().st_size / 8
    finally:
        tracemalloc.stop()


def test_tail_ends_where_the_compilers_own_traceback_begins(log: BuildLog) -> None:
    write(log, "last words", "", TRACEBACK_MARK, "Traceback", *(["x"] * 50))
    assert log.tail() == ["last words"]
