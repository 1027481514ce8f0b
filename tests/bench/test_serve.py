"""The whole benchmark against a real server whose engine repeats the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from deepinfer.bench.client import Route, Target, parse_url
from deepinfer.bench.load import LoadPlan, split
from deepinfer.bench.prompts import PromptPlan, parse_lengths
from deepinfer.bench.report import Objective, Run
from deepinfer.bench.serve import (
    ServeOptions,
    check_options,
    parse_levels,
    probe_server,
    run_serve,
    start_server,
)
from deepinfer.errors import BenchError, ConfigError
from tests.bench.scripted import scripted, stream, text_event, whole
from tests.server.serving import MODEL_ID, ServerProcess, make_echo_engine, serving

OPTIONS = ServeOptions(
    concurrency=4,
    rate_per_s=None,
    num_requests=12,
    input_lengths=parse_lengths("64"),
    output_lengths=parse_lengths("uniform:5:20"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo")
    with serving(folder) as process:
        yield process


def measure(server: ServerProcess, options: ServeOptions = OPTIONS, **target: object) -> Run:
    fields: dict[str, object] = {"ignores_eos": True}
    place = msgspec.structs.replace(parse_url(server.url), **(fields | target))
    (run,) = run_serve(place, [options]).runs
    return run


def check_whole(run: Run, num_requests: int = 12) -> None:
    summary = run.summary
    assert (summary.num_requests, summary.num_ok, summary.errors) == (num_requests,) * 2 + ({},)
    assert summary.output_tokens_counted_by == "usage"
    assert summary.num_short == 0
    assert summary.elapsed_s > 0 and summary.e2e_s is not None
    assert summary.output_tokens is not None and 5 <= summary.output_tokens.mean <= 20


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_closed_loop_streams_every_answer_to_its_length(server: ServerProcess, route: str) -> None:
    run = measure(server, route=route)
    check_whole(run)
    assert run.summary.ttft_s is not None


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_answers_may_come_in_one_piece(server: ServerProcess, route: str) -> None:
    run = measure(server, route=route, is_streaming=False)
    check_whole(run)
    assert (run.summary.ttft_s, run.summary.itl_s) == (None, None)


@pytest.mark.parametrize("arrivals", ["poisson", "fixed"])
def test_open_loop_sends_every_request(server: ServerProcess, arrivals: str) -> None:
    options = replace(OPTIONS, concurrency=None, rate_per_s=200.0, arrivals=arrivals)
    run = measure(server, options)  # type: ignore[arg-type]
    check_whole(run)
    assert (run.level, run.load.arrivals) == ("200/s", arrivals)


def test_processes_share_one_load(server: ServerProcess) -> None:
    check_whole(measure(server, replace(OPTIONS, num_processes=2, num_warm_up=3)))


def test_process_that_is_lost_ends_the_benchmark(server: ServerProcess) -> None:
    lost = replace(OPTIONS, num_processes=2, dataset=Path("no such file"))
    with pytest.raises(BenchError, match="a process of the benchmark ended"):
        measure(server, lost)


def test_duration_bounds_the_sending(server: ServerProcess) -> None:
    run = measure(server, replace(OPTIONS, num_requests=None, duration_s=0.5))
    check_whole(run, run.summary.num_requests)
    assert run.summary.num_requests > 0


def test_prompts_of_ids_are_of_exact_length(server: ServerProcess) -> None:
    run = measure(server, replace(OPTIONS, prompts="ids"))
    check_whole(run)
    assert run.summary.prompt_tokens is not None
    # One token comes from the server, which puts the beginning of a text before the ids or not.
    assert (
        run.summary.prompt_tokens.p50 == run.summary.prompt_tokens.p99 == pytest.approx(64, abs=1)
    )


def test_prompts_of_text_are_about_as_long_as_asked(server: ServerProcess) -> None:
    run = measure(server, replace(OPTIONS, input_lengths=parse_lengths("512")))
    assert run.summary.prompt_tokens is not None
    assert run.summary.prompt_tokens.mean == pytest.approx(512, rel=0.25)


def test_sweep_has_a_run_a_level(server: ServerProcess) -> None:
    levels = [OPTIONS.with_level("concurrency", level) for level in (1, 4)] + [
        OPTIONS.with_level("rate", 100.5)
    ]
    document = run_serve(msgspec.structs.replace(parse_url(server.url), ignores_eos=True), levels)
    assert [run.level for run in document.runs] == ["1", "4", "100.5/s"]
    assert document.model == MODEL_ID


def test_refusals_of_the_server_are_errors_by_code(server: ServerProcess) -> None:
    run = measure(server, replace(OPTIONS, input_lengths=parse_lengths("100000")))
    assert run.summary.num_ok == 0
    assert run.summary.errors == {"http_400 context_length_exceeded": 12}


def test_goodput_is_counted_when_there_is_an_objective(server: ServerProcess) -> None:
    run = measure(server, replace(OPTIONS, objective=Objective(ttft=1e-9)))
    assert run.summary.goodput is not None and run.summary.goodput.share == 0.0


def test_server_of_its_own_is_ended_with_the_benchmark(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    with start_server(tmp_path, None, ()) as url:
        assert parse_url(url).host == "127.0.0.1"
    with pytest.raises(BenchError, match="cannot reach"):
        run_serve(parse_url(url), [OPTIONS])


def test_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchError, match=r"did not become ready: there is no engine in") as caught,
        start_server(tmp_path, None, ()),
    ):
        pass
    assert caught.value.hint


async def probe(target: Target, *, needs_ids: bool = False) -> tuple[Target, tuple[str, ...]]:
    info = await probe_server(target, needs_ids=needs_ids)
    return info.target, info.notes


MODELS = whole(b'{"data": [{"id": "peer"}]}')
NOT_FOUND = whole(b'{"detail": "Not Found"}', "404 Not Found")
ANSWER = stream(text_event("a"))


async def test_peer_that_takes_no_stream_options_is_asked_without() -> None:
    refusal = whole(b'{"error": {"message": "stream_options: uninfo"}}', "400 Bad Request")
    usage = whole(b'{"choices": [], "usage": {"prompt_tokens": 700, "completion_tokens": 1}}')
    async with scripted(MODELS, refusal, ANSWER, NOT_FOUND, usage) as (_, place):
        target, notes = await probe(place)
    assert (target.model, target.with_usage) == ("peer", False)
    assert notes == ("the server does not accept `stream_options`: tokens are counted by events",)


async def test_peer_that_counts_nothing_is_told() -> None:
    async with scripted(MODELS, ANSWER, NOT_FOUND, whole(b"{}")) as (_, place):
        _, notes = await probe(place)
    assert notes == ("the server does not count prompt tokens: assuming 1.3 tokens per word",)


async def test_tokens_a_word_are_asked_for() -> None:
    tokens = whole(b'{"count": 1024, "tokens": [' + b",".join([b"7"] * 1024) + b"]}")
    async with scripted(MODELS, ANSWER, tokens) as (_, place):
        info = await probe_server(place, needs_ids=False)
    assert (info.tokens_per_word, info.token_ids) == (2.0, ())


async def test_ids_need_a_server_that_tokenises() -> None:
    async with scripted(MODELS, ANSWER, NOT_FOUND) as (_, place):
        with pytest.raises(BenchError, match="needs a server with a `/tokenize` route"):
            await probe(place, needs_ids=True)


async def test_refusal_is_in_the_words_of_the_server_with_a_way_out() -> None:
    refusal = whole(b'{"error": {"message": "ignore_eos is not info"}}', "400 Bad Request")
    async with scripted(MODELS, refusal) as (_, place):
        with pytest.raises(BenchError, match="HTTP 400.: ignore_eos is not info") as caught:
            await probe(msgspec.structs.replace(place, ignores_eos=True))
    assert caught.value.hint and "--ignore-eos" in caught.value.hint


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (whole(b"{}", "401 Unauthorized"), "OPENAI_API_KEY"),
        (whole(b'{"data": []}'), "--model"),
        (NOT_FOUND, "--model"),
    ],
    ids=["needs a key", "no models", "no list"],
)
async def test_model_that_cannot_be_found_has_a_way_out(answer: list[bytes], hint: str) -> None:
    async with scripted(answer) as (_, place):
        with pytest.raises(BenchError) as caught:
            await probe(place)
    assert caught.value.hint and hint in caught.value.hint


def test_shares_make_up_the_load() -> None:
    plan = LoadPlan(
        target=parse_url("http://x"),
        prompts=PromptPlan(input_lengths=None, output_lengths=None),
        concurrency=10,
        rate_per_s=None,
        num_requests=23,
        duration_s=None,
        num_warm_up=5,
        timeout_s=1.0,
    )
    shares = split(plan, 4)
    assert sum(share.own_concurrency for share in shares) == 10
    assert sum(share.own_warm_up for share in shares) == 5
    assert sorted(index for share in shares for index in share.indices) == list(range(23))


def test_levels_are_read() -> None:
    assert parse_levels("1,4,2.5") == [1.0, 4.0, 2.5]
    for text in ("", "0", "-1", "a", "1,,2", "nan"):
        with pytest.raises(ConfigError):
            parse_levels(text)


@pytest.mark.parametrize(
    ("options", "route"),
    [
        (replace(OPTIONS, num_processes=5), "completions"),
        (replace(OPTIONS, dataset=Path("a.jsonl"), prompts="ids"), "completions"),
        (replace(OPTIONS, prompts="ids"), "chat"),
    ],
    ids=["more processes than streams", "ids of a data set", "ids in a chat"],
)
def test_options_that_cannot_go_together_are_refused(options: ServeOptions, route: Route) -> None:
    with pytest.raises(ConfigError):
        check_options(options, route)


def test_part_of_a_stream_is_no_level() -> None:
    with pytest.raises(ConfigError):
        OPTIONS.with_level("concurrency", 1.5)
