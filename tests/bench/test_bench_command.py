"""`deepinfer bench` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepinfer.__main__ import main
from tests.server.serving import MODEL_ID, ServerProcess, make_echo_engine, serving

KEY = "sk-bench"


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo", step_us=2_000)  # so that tokens come one at a time
    return folder


@pytest.fixture(scope="module")
def server(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    key_file = tmp_path_factory.mktemp("keys") / "key"
    key_file.write_text(KEY)
    with serving(engine_dir, "--api-key-file", str(key_file)) as process:
        yield process


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def bench(server: ServerProcess, *arguments: str) -> int:
    few = ["--num-requests", "6", "--output-tokens", "4", "--prompt-tokens", "32", "--ignore-eos"]
    return main(["bench", "serve", "--url", server.url, *few, *arguments])


def test_one_run_prints_its_figures_and_writes_its_report(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.json"
    assert bench(server, "--concurrency", "2", "--slo", "ttft=60", "--json", str(path)) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "load 2 at once" in lines
    assert "tokens counted by usage" in lines
    assert any(line.startswith("time to first token, ms") for line in lines)
    document = json.loads(path.read_text())
    assert (document["kind"], document["schema_version"]) == ("serve", 1)
    (run,) = document["runs"]
    assert (document["model"], run["summary"]["num_ok"]) == (MODEL_ID, 6)
    assert run["summary"]["goodput"]["share"] == 1.0
    assert KEY not in path.read_text()


def test_sweep_prints_a_line_a_level_and_draws_its_curve(
    server: ServerProcess,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench(server, "--sweep", "1,2", "--png", "a.png", "--route", "chat") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("LOAD")
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert "<svg" in (tmp_path / "deepinfer-bench.html").read_text()
    assert (tmp_path / "a.png").exists()


def test_two_reports_are_compared_without_a_server(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for path in paths:
        assert bench(server, "--json", path) == 0
    capsys.readouterr()
    assert main(["bench", "serve", "--compare", paths[0], paths[0]]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-3:] == ["B", "/", "A"]
    assert {row.split()[-1] for row in rows} == {"1.000"}


def test_run_without_one_answer_is_reported_and_then_an_error(
    server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(server, "--prompt-tokens", "100000") == 1
    output = capsys.readouterr()
    assert "6 failed" in output.out
    assert output.err.splitlines()[-1] == (
        "error: no request succeeded; most ended as `http_400 context_length_exceeded`"
    )


@pytest.mark.parametrize("text", ["two words", "schl\u00fcssel", "\n"])
def test_key_is_one_word(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text(text, encoding="utf-8")
    arguments = ["--url", "http://127.0.0.1:1", "--api-key-file", str(tmp_path / "key")]
    assert main(["bench", "serve", *arguments]) == 1
    assert "does not hold one API key" in capsys.readouterr().err


def test_server_of_its_own_takes_options(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--engine-dir", str(engine_dir), "--serve-option", "max-waiting-requests=64"]
    assert main(["bench", "serve", *arguments, "--num-requests", "4", "--output-tokens", "4"]) == 0
    assert "requests/s" in capsys.readouterr().out


def test_engine_is_measured_without_http(
    engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "e.json"
    arguments = ["--engine-dir", str(engine_dir), "--rates-only", "--json", str(path)]
    sizes = ["--batch-sizes", "1,2", "--prompt-lens", "16", "--trials", "1"]
    assert main(["bench", "engine", "echo", *arguments, *sizes]) == 0
    assert "DECODE TOKENS/S" in capsys.readouterr().out
    document = json.loads(path.read_text())
    assert (document["kind"], document["machine"]) == ("engine", None)
    assert [point["batch_size"] for point in document["points"]] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ([], "a benchmark needs a server", "--engine-dir engines"),
        (["--url", "x"], "`x` is not a URL", "http://127.0.0.1:8000"),
        (["--url", "http://x", "--engine-dir", "e"], "one of `--url` and `--engine-dir`", ""),
        (["--url", "http://x", "--concurrency", "2", "--rate", "2"], "cannot both be given", ""),
        (["--url", "http://x", "--prompt-tokens", "few"], "is not a number of tokens", "uniform"),
        (["--url", "http://x", "--slo", "tftt=1"], "there is no objective `tftt`", "`ttft`"),
        (["--url", "http://x", "--sweep", "1;2"], "is not a list of levels", "1,4,16"),
        (["--url", "http://x", "--extra-body", "[]"], "must be a JSON object", ""),
        (["--url", "http://127.0.0.1:1"], "cannot reach http://127.0.0.1:1", "start the server"),
        (["--compare", "no.json", "no.json"], "cannot read `no.json`", "--json"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_mostly_a_hint(
    arguments: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error.splitlines()[0]
    assert hint in error


def test_server_that_asks_for_a_key_is_told_so(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert bench(server) == 1
    assert "hint: set OPENAI_API_KEY" in capsys.readouterr().err
