"""`deepinfer bench`: how fast a server answers, and how fast an engine could.

This module reads options and prints; what is measured, and how, is in `deepinfer.bench`.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from deepinfer.bench.engine import EngineBenchPlan
    from deepinfer.bench.machine import MachineRates
    from deepinfer.bench.report import Document
    from deepinfer.bench.serve import ServeOptions
    from deepinfer.bench.target import Target
    from deepinfer.manifest import EngineFolder

KEY_VARIABLE = "OPENAI_API_KEY"
DEFAULT_PAGE = Path("deepinfer-bench.html")
DEFAULT_LENGTH = "128"
DEFAULT_CONCURRENCY = 8
# Options that the benchmark calls as the command line does.
SAME_NAMES = (
    *("rate_per_s", "arrivals", "num_requests", "duration_s", "num_warm_up", "dataset", "prompts"),
    *("prefix_tokens", "num_prefixes", "seed", "timeout_s", "num_processes"),
)
FILE = click.Path(path_type=Path)


@click.group()
def bench() -> None:
    """Measure a server over HTTP, or an engine without it."""


# fmt: off
@bench.command("serve")
@click.option("--url", help="Server to measure, any OpenAI-compatible one.")
@click.option("--engine-dir", type=FILE, help="Start a server of these engines and measure that.")
@click.option("--serve-option", "serve_options", multiple=True, metavar="OPTION=VALUE",
              help="With `--engine-dir`: option of `deepinfer serve`, such as `num-threads=2`.")
@click.option("--model", help="Model to ask for.  [default: the first one that is listed]")
@click.option("--api-key-file", type=FILE,
              help=f"File with the server's API key.  [default: ${KEY_VARIABLE}]")
@click.option("--route", type=click.Choice(["completions", "chat"]), default="completions",
              show_default=True, help="Route to ask.")
@click.option("--stream/--whole", "is_streaming", default=True, show_default=True,
              help="Stream answers, or ask for each in one piece.")
@click.option("--concurrency", type=click.IntRange(1, 100_000),
              help="Closed loop: requests at once.  [default: 8]")
@click.option("--rate", "rate_per_s", type=click.FloatRange(0, 1e6, min_open=True),
              help="Open loop: requests a second, however many are under way.")
@click.option("--arrivals", type=click.Choice(["poisson", "fixed"]), default="poisson",
              show_default=True, help="With `--rate`: when requests arrive.")
@click.option("--num-requests", type=click.IntRange(1, 10_000_000),
              help="Requests of a run.  [default: 64, or 4 a stream, unless `--duration` is given]")
@click.option("--duration", "duration_s", type=click.FloatRange(0, min_open=True),
              help="Seconds in which requests are sent; those under way are waited for.")
@click.option("--warm-up", "num_warm_up", type=click.IntRange(0, 100_000), default=0,
              show_default=True, help="Requests before those that count.")
@click.option("--prompt-tokens", metavar="LENGTHS",
              help="`128`, `uniform:64:256` or `lognormal:128:0.7`.  [default: 128]")
@click.option("--output-tokens", metavar="LENGTHS",
              help="Likewise, of answers.  [default: 128, or what the data set says]")
@click.option("--dataset", type=FILE, help="JSONL of prompts, as ShareGPT's or with `prompt`.")
@click.option("--prompts", type=click.Choice(["text", "ids"]), default="text", show_default=True,
              help="Send text, or token ids of exact number (needs `/tokenize`).")
@click.option("--prefix-tokens", type=click.IntRange(0, 1_000_000), default=0, show_default=True,
              help="Tokens before each prompt that it shares with others.")
@click.option("--num-prefixes", type=click.IntRange(1, 100_000), default=1, show_default=True,
              help="Different shared prefixes.")
@click.option("--ignore-eos", "ignores_eos", is_flag=True,
              help="Ask for answers of full length (not every server can).")
@click.option("--extra-body", metavar="JSON", help="Fields that each request is sent with.")
@click.option("--seed", type=int, default=0, show_default=True,
              help="The same seed asks the same prompts at the same moments.")
@click.option("--request-timeout", "timeout_s", type=click.FloatRange(0, min_open=True),
              default=600.0, show_default=True, help="Seconds until a request is given up.")
@click.option("--processes", "num_processes", type=click.IntRange(1, 256), default=1,
              show_default=True, help="Processes of the client.")
@click.option("--slo", metavar="OBJECTIVE",
              help="Count goodput: seconds a request may take, such as `ttft=0.5,itl=0.05,e2e=9`.")
@click.option("--sweep", metavar="LEVELS", help="A run for each of these, such as `1,4,16,32`.")
@click.option("--sweep-over", type=click.Choice(["concurrency", "rate"]), default="concurrency",
              show_default=True, help="What the levels of `--sweep` are.")
@click.option("--json", "json_file", type=FILE, help="Write the report here, for machines.")
@click.option("--html", "html_file", type=FILE,
              help=f"Write the page with the curve here.  [default for a sweep: {DEFAULT_PAGE}]")
@click.option("--png", "png_file", type=FILE,
              help="Draw the curve here, with the extra `deepinfer[bench]`.")
@click.option("--compare", type=FILE, nargs=2, metavar="A.json B.json",
              help="Measure nothing: print how many times of A each figure of B is.")
# fmt: on
def bench_serve(**options: Any) -> None:
    """Measure a server over HTTP: throughput, latency, goodput, errors."""
    from deepinfer.bench.report import check_success, write_document

    if options["compare"] is not None:
        _compare(*options["compare"])
        return
    if options["png_file"] is not None:
        from deepinfer.bench.png import check_png

        check_png(options["png_file"])
    document = _measure(options, _read_levels(options))
    _print_document(document)
    if options["json_file"] is not None:
        write_document(options["json_file"], document)
    _draw(document, options["html_file"], options["png_file"], is_sweep=bool(options["sweep"]))
    check_success(document)


def _draw(
    document: Document, html_file: Path | None, png_file: Path | None, *, is_sweep: bool
) -> None:
    if html_file is None and is_sweep:
        html_file = DEFAULT_PAGE
    if html_file is not None:
        from deepinfer.bench.chart import render_page
        from deepinfer.bench.report import write_file

        write_file(html_file, render_page(document).encode())
        click.echo(f"the curve is in `{html_file}`", err=True)
    if png_file is not None:
        from deepinfer.bench.png import write_png

        write_png(png_file, document)


def _read_target(url: str, options: dict[str, Any]) -> Target:
    import msgspec

    from deepinfer.bench.target import parse_url

    return msgspec.structs.replace(
        parse_url(url),
        api_key=_read_key(options["api_key_file"]),
        model=options["model"] or "",
        route=options["route"],
        is_streaming=options["is_streaming"],
        ignores_eos=options["ignores_eos"],
        extra=_read_extra(options["extra_body"]),
    )


def _read_key(file: Path | None) -> str | None:
    from deepinfer.errors import ConfigError

    source = f"${KEY_VARIABLE}" if file is None else f"`{file}`"
    try:
        text = os.environ.get(KEY_VARIABLE, "") if file is None else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {source}: {error}") from error
    if file is None and not text:
        return None
    words = text.split()
    if len(words) != 1 or not text.isascii():
        raise ConfigError(f"{source} does not hold one API key", hint="a key is one word in ASCII")
    return words[0]


def _read_extra(text: str | None) -> dict[str, Any]:
    import json

    from deepinfer.errors import ConfigError

    try:
        fields = json.loads(text or "{}")
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError(
            "`--extra-body` must be a JSON object", hint="""such as `{"repetition_penalty": 1.1}`"""
        )
    return fields


def _read_levels(options: dict[str, Any]) -> list[ServeOptions]:
    """What to measure, one a run."""
    from deepinfer.bench.serve import check_options, parse_levels
    from deepinfer.errors import ConfigError

    if options["concurrency"] is not None and options["rate_per_s"] is not None:
        raise ConfigError(
            "`--concurrency` and `--rate` cannot both be given",
            hint="a closed loop has so many requests at once, an open one so many a second",
        )
    one = _read_options(options)
    levels = [one]
    if options["sweep"] is not None:
        levels = [one.at(options["sweep_over"], level) for level in parse_levels(options["sweep"])]
    for level in levels:
        check_options(level, options["route"])
    return levels


def _read_options(options: dict[str, Any]) -> ServeOptions:
    from deepinfer.bench.corpus import read_dataset
    from deepinfer.bench.lengths import parse_lengths
    from deepinfer.bench.serve import ServeOptions
    from deepinfer.bench.summary import parse_objective

    has_dataset = options["dataset"] is not None
    prompt_tokens = options["prompt_tokens"] or (None if has_dataset else DEFAULT_LENGTH)
    output_tokens = options["output_tokens"] or (None if has_dataset else DEFAULT_LENGTH)
    if has_dataset:
        read_dataset(options["dataset"])  # it shall not be found wanting after a server was started
    concurrency = options["concurrency"]
    if concurrency is None and options["rate_per_s"] is None:
        concurrency = DEFAULT_CONCURRENCY
    return ServeOptions(
        concurrency=concurrency,
        input_lengths=parse_lengths(prompt_tokens) if prompt_tokens else None,
        output_lengths=parse_lengths(output_tokens) if output_tokens else None,
        objective=parse_objective(options["slo"]) if options["slo"] else None,
        **{name: options[name] for name in SAME_NAMES},
    )


def _measure(options: dict[str, Any], levels: list[ServeOptions]) -> Document:
    from deepinfer.bench.serve import run_serve

    with _place(options) as url:
        target = _read_target(url, options)
        return run_serve(target, levels, lambda line: click.echo(line, err=True))


def _place(options: dict[str, Any]) -> AbstractContextManager[str]:
    """The URL of the server, for as long as it is needed."""
    from deepinfer.bench.own_server import own_server
    from deepinfer.errors import ConfigError

    url, engine_dir = options["url"], options["engine_dir"]
    if (url is None) == (engine_dir is None):
        raise ConfigError(
            "a benchmark needs a server: one of `--url` and `--engine-dir`",
            hint="`deepinfer bench serve --engine-dir engines` starts a server of its own",
        )
    # What is wrong with the options shall not have to wait for an engine to load.
    _read_target(url or "http://localhost", options)
    if url is not None:
        return nullcontext(url)
    click.echo(f"starting a server of the engines in `{engine_dir}`", err=True)
    flags = tuple(f"--{option}" for option in options["serve_options"])
    return own_server(engine_dir, options["model"], flags)


def _print_document(document: Document) -> None:
    from deepinfer.bench import report
    from deepinfer.terminal import print_table

    if len(document.runs) > 1:
        print_table(map(report.sweep_row, document.runs), headers=report.SWEEP_HEADERS)
    else:
        for run in document.runs:
            print_table(report.overview(run))
            click.echo()
            print_table(report.spreads(run), headers=report.SPREAD_HEADERS)
    for line in report.warnings(document.runs):
        click.echo(f"warning: {line}", err=True)


def _compare(first_file: Path, second_file: Path) -> None:
    from deepinfer.bench.compare import HEADERS, compare, differences
    from deepinfer.bench.report import read_document
    from deepinfer.terminal import print_table

    first, second = read_document(first_file), read_document(second_file)
    print_table(compare(first, second), headers=HEADERS)
    for line in differences(first, second):
        click.echo(f"warning: {line}", err=True)


# fmt: off
@bench.command("engine")
@click.argument("name")
@click.option("--engine-dir", type=FILE, default=Path("engines"), show_default=True,
              help="Folder of engines, or one engine.")
@click.option("--batch-sizes", default="1,4,16", show_default=True, metavar="NUMBERS",
              help="Sequences at once.")
@click.option("--prompt-lens", default="128,512", show_default=True, metavar="NUMBERS",
              help="Tokens of each prompt.")
@click.option("--output-tokens", type=click.IntRange(2, 100_000), default=64, show_default=True,
              help="Tokens of each answer.")
@click.option("--trials", "num_trials", type=click.IntRange(1, 1000), default=5, show_default=True,
              help="Times that each is measured, after one that does not count.")
@click.option("--num-threads", type=click.IntRange(1, 4096),
              help="Threads of the engine.  [default: every CPU that may be used]")
@click.option("--roofline/--rates-only", "with_roofline", default=True, show_default=True,
              help="Measure this machine too, and give rates as a share of its limit.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts.")
@click.option("--json", "json_file", type=FILE, help="Write the report here, for machines.")
# fmt: on
def bench_engine(
    name: str,
    engine_dir: Path,
    with_roofline: bool,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Measure an engine without HTTP, against what this machine can do at most."""
    import msgspec

    from deepinfer.bench.engine import bench_engine
    from deepinfer.bench.engine_report import HEADERS, facts, row
    from deepinfer.bench.report import write_file
    from deepinfer.bench.worker import run_async
    from deepinfer.commands.engines import find_engine
    from deepinfer.terminal import print_table

    plan, engine = _read_engine_plan(options), find_engine(engine_dir, name)
    machine = _measure_machine(engine, plan.num_threads) if with_roofline else None
    report = run_async(bench_engine(engine, plan, machine, lambda line: click.echo(line, err=True)))
    print_table(facts(report))
    click.echo()
    print_table(map(row, report.points), headers=HEADERS)
    for line in report.skipped:
        click.echo(f"skipped: {line}", err=True)
    if json_file is not None:
        write_file(json_file, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def _read_engine_plan(options: dict[str, Any]) -> EngineBenchPlan:
    from deepinfer.bench.engine import EngineBenchPlan
    from deepinfer.bench.lengths import parse_list

    return EngineBenchPlan(
        batch_sizes=parse_list(options.pop("batch_sizes")),
        prompt_lens=parse_list(options.pop("prompt_lens")),
        **options,
    )


def _measure_machine(engine: EngineFolder, num_threads: int | None) -> MachineRates | None:
    """None for an engine that does not run on the CPU, whose limits are not this memory's."""
    from deepinfer.bench.machine import measure_machine
    from deepinfer.device import read_machine

    if engine.manifest.target.kind != "cpu":
        click.echo("the limits of a GPU are not measured: rates only", err=True)
        return None
    click.echo("measuring this machine", err=True)
    return measure_machine(num_threads or read_machine().cpu.num_threads)
