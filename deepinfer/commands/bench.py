"""`deepinfer bench`: options and printing; the measuring is in `deepinfer.bench`."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from deepinfer.bench.client import Target
    from deepinfer.bench.report import Document
    from deepinfer.bench.serve import ServeOptions

KEY_VARIABLE = "OPENAI_API_KEY"
DEFAULT_PAGE = Path("deepinfer-bench.html")
DEFAULT_LENGTH = "128"
DEFAULT_CONCURRENCY = 8
# Options with the same name in ServeOptions.
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
@click.option("--url", help="URL of the server, any OpenAI-compatible one.")
@click.option("--engine-dir", type=FILE, help="Start a server of these engines and measure it.")
@click.option("--serve-option", "serve_options", multiple=True, metavar="OPTION=VALUE",
              help="With `--engine-dir`: option of `deepinfer serve`, such as `num-threads=2`.")
@click.option("--model", help="Model to measure.  [default: the first one that the server lists]")
@click.option("--api-key-file", type=FILE,
              help=f"File with the server's API key.  [default: ${KEY_VARIABLE}]")
@click.option("--route", type=click.Choice(["completions", "chat"]), default="completions",
              show_default=True, help="Route to measure.")
@click.option("--stream/--whole", "is_streaming", default=True, show_default=True,
              help="Stream answers, or receive each in one piece.")
@click.option("--concurrency", type=click.IntRange(1, 100_000),
              help="Closed loop: number of concurrent requests.  [default: 8]")
@click.option("--rate", "rate_per_s", type=click.FloatRange(0, 1e6, min_open=True),
              help="Open loop: requests per second, however many are in flight.")
@click.option("--arrivals", type=click.Choice(["poisson", "fixed"]), default="poisson",
              show_default=True, help="With `--rate`: when requests arrive.")
@click.option("--num-requests", type=click.IntRange(1, 10_000_000),
              help="Requests per run.  [default: 64, or 4 per stream; none with `--duration`]")
@click.option("--duration", "duration_s", type=click.FloatRange(0, min_open=True),
              help="Seconds in which requests are sent; requests in flight are awaited.")
@click.option("--warm-up", "num_warm_up", type=click.IntRange(0, 100_000), default=0,
              show_default=True, help="Requests that are sent first and not measured.")
@click.option("--prompt-tokens", metavar="LENGTHS",
              help="`128`, `uniform:64:256` or `lognormal:128:0.7`.  [default: 128]")
@click.option("--output-tokens", metavar="LENGTHS",
              help="The same for answers.  [default: 128, or the lengths of the data set]")
@click.option("--dataset", type=FILE,
              help="JSON Lines file of prompts, as ShareGPT's or with `prompt`.")
@click.option("--prompts", type=click.Choice(["text", "ids"]), default="text", show_default=True,
              help="Send text, or an exact number of token ids (needs `/tokenize`).")
@click.option("--prefix-tokens", type=click.IntRange(0, 1_000_000), default=0, show_default=True,
              help="Length of the prefix that prompts share.")
@click.option("--num-prefixes", type=click.IntRange(1, 100_000), default=1, show_default=True,
              help="Number of different shared prefixes.")
@click.option("--ignore-eos", "ignores_eos", is_flag=True,
              help="Request answers of full length (not every server supports this).")
@click.option("--extra-body", metavar="JSON", help="Fields to add to each request.")
@click.option("--seed", type=int, default=0, show_default=True,
              help="The same seed sends the same prompts at the same times.")
@click.option("--request-timeout", "timeout_s", type=click.FloatRange(0, min_open=True),
              default=600.0, show_default=True, help="Timeout of a request in seconds.")
@click.option("--processes", "num_processes", type=click.IntRange(1, 256), default=1,
              show_default=True, help="Number of client processes.")
@click.option("--slo", metavar="OBJECTIVE",
              help="Measure goodput: limits in seconds, such as `ttft=0.5,itl=0.05,e2e=9`.")
@click.option("--sweep", metavar="LEVELS", help="Measure one run per level, such as `1,4,16,32`.")
@click.option("--sweep-over", type=click.Choice(["concurrency", "rate"]), default="concurrency",
              show_default=True, help="Meaning of the levels of `--sweep`.")
@click.option("--json", "json_file", type=FILE, help="Write the report to this file as JSON.")
@click.option("--html", "html_file", type=FILE,
              help=f"Write the curve to this HTML page.  [default for a sweep: {DEFAULT_PAGE}]")
@click.option("--png", "png_file", type=FILE,
              help="Write the curve to this PNG (needs `deepinfer[bench]`).")
@click.option("--compare", type=FILE, nargs=2, metavar="A.json B.json",
              help="Compare two reports and measure nothing.")
# fmt: on
def bench_serve(**options: Any) -> None:
    """Measure a server over HTTP: throughput, latency, goodput, errors."""
    from deepinfer.bench.chart import check_png, render_page, write_png
    from deepinfer.bench.report import check_success, write_document, write_file
    from deepinfer.bench.serve import run_serve

    if options["compare"] is not None:
        _compare(*options["compare"])
        return
    html_file, png_file = options["html_file"], options["png_file"]
    if png_file is not None:
        check_png(png_file)
    levels = _read_levels(options)
    with _open_server(options) as url:
        target = _read_target(url, options)
        document = run_serve(target, levels, lambda line: click.echo(line, err=True))
    _print_document(document)
    if options["json_file"] is not None:
        write_document(options["json_file"], document)
    if html_file is None and options["sweep"]:
        html_file = DEFAULT_PAGE
    if html_file is not None:
        write_file(html_file, render_page(document).encode())
        click.echo(f"the curve is in `{html_file}`", err=True)
    if png_file is not None:
        write_png(png_file, document)
    check_success(document)


def _read_target(url: str, options: dict[str, Any]) -> Target:
    import msgspec

    from deepinfer.bench.client import parse_url

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
        raise ConfigError(f"{source} does not hold one API key", hint="a key is one ASCII word")
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
    """The options of each run."""
    from deepinfer.bench.serve import check_options, parse_levels
    from deepinfer.errors import ConfigError

    if options["concurrency"] is not None and options["rate_per_s"] is not None:
        raise ConfigError(
            "`--concurrency` and `--rate` cannot both be given",
            hint="a closed loop has a concurrency, an open loop has a rate",
        )
    one = _read_options(options)
    levels = [one]
    if options["sweep"] is not None:
        kind = options["sweep_over"]
        levels = [one.with_level(kind, level) for level in parse_levels(options["sweep"])]
    for level in levels:
        check_options(level, options["route"])
    return levels


def _read_options(options: dict[str, Any]) -> ServeOptions:
    from deepinfer.bench.prompts import parse_lengths, read_dataset
    from deepinfer.bench.report import parse_objective
    from deepinfer.bench.serve import ServeOptions

    has_dataset = options["dataset"] is not None
    prompt_tokens = options["prompt_tokens"] or (None if has_dataset else DEFAULT_LENGTH)
    output_tokens = options["output_tokens"] or (None if has_dataset else DEFAULT_LENGTH)
    if has_dataset:
        read_dataset(options["dataset"])  # fail before a server is started
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


def _open_server(options: dict[str, Any]) -> AbstractContextManager[str]:
    """The URL of the given server, or of one that runs until the context exits."""
    from deepinfer.bench.serve import start_server
    from deepinfer.errors import ConfigError

    url, engine_dir = options["url"], options["engine_dir"]
    if (url is None) == (engine_dir is None):
        raise ConfigError(
            "a benchmark needs a server: one of `--url` and `--engine-dir`",
            hint="`deepinfer bench serve --engine-dir engines` starts a server",
        )
    # Fail for wrong options before an engine is loaded.
    _read_target(url or "http://localhost", options)
    if url is not None:
        return nullcontext(url)
    click.echo(f"starting a server of the engines in `{engine_dir}`", err=True)
    flags = tuple(f"--{option}" for option in options["serve_options"])
    return start_server(engine_dir, options["model"], flags)


def _print_document(document: Document) -> None:
    from deepinfer.bench import report
    from deepinfer.terminal import print_table

    if len(document.runs) > 1:
        print_table(map(report.sweep_row, document.runs), headers=report.SWEEP_HEADERS)
    else:
        for run in document.runs:
            print_table(report.overview(run))
            click.echo()
            print_table(report.percentile_rows(run), headers=report.SPREAD_HEADERS)
    for line in report.warnings(document.runs):
        click.echo(f"warning: {line}", err=True)


def _compare(first_file: Path, second_file: Path) -> None:
    from deepinfer.bench.report import COMPARISON_HEADERS, compare, differences, read_document
    from deepinfer.terminal import print_table

    first, second = read_document(first_file), read_document(second_file)
    print_table(compare(first, second), headers=COMPARISON_HEADERS)
    for line in differences(first, second):
        click.echo(f"warning: {line}", err=True)


# fmt: off
@bench.command("engine")
@click.argument("name")
@click.option("--engine-dir", type=FILE, default=Path("engines"), show_default=True,
              help="Folder of engines, or one engine.")
@click.option("--batch-sizes", default="1,4,16", show_default=True, metavar="NUMBERS",
              help="Numbers of concurrent sequences.")
@click.option("--prompt-lens", default="128,512", show_default=True, metavar="NUMBERS",
              help="Lengths of the prompts in tokens.")
@click.option("--output-tokens", type=click.IntRange(2, 100_000), default=64, show_default=True,
              help="Length of the answers in tokens.")
@click.option("--trials", "num_trials", type=click.IntRange(1, 1000), default=5, show_default=True,
              help="Measured trials per point, after one warm-up.")
@click.option("--num-threads", type=click.IntRange(1, 4096),
              help="Threads of the engine.  [default: all CPUs that the process may use]")
@click.option("--roofline/--rates-only", "with_roofline", default=True, show_default=True,
              help="Measure this machine too, and show rates as a share of its limits.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the prompts.")
@click.option("--json", "json_file", type=FILE, help="Write the report to this file as JSON.")
# fmt: on
def bench_engine(
    name: str,
    engine_dir: Path,
    with_roofline: bool,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Measure an engine without HTTP, against the limits of this machine."""
    import msgspec

    from deepinfer.bench import engine as engine_bench
    from deepinfer.bench.load import run_async
    from deepinfer.bench.machine import measure_machine
    from deepinfer.bench.prompts import parse_list
    from deepinfer.bench.report import write_file
    from deepinfer.commands.engines import find_engine
    from deepinfer.device import read_machine
    from deepinfer.terminal import print_table

    plan = engine_bench.EngineBenchPlan(
        batch_sizes=parse_list(options.pop("batch_sizes")),
        prompt_lens=parse_list(options.pop("prompt_lens")),
        **options,
    )
    engine = find_engine(engine_dir, name)
    machine = None
    if with_roofline and engine.manifest.target.kind != "cpu":
        click.echo("the limits of a GPU are not measured: rates only", err=True)
    elif with_roofline:
        click.echo("measuring this machine", err=True)
        machine = measure_machine(plan.num_threads or read_machine().cpu.num_threads)
    report = run_async(
        engine_bench.bench_engine(engine, plan, machine, lambda line: click.echo(line, err=True))
    )
    print_table(engine_bench.engine_overview(report))
    click.echo()
    print_table(map(engine_bench.point_row, report.points), headers=engine_bench.HEADERS)
    for line in report.skipped:
        click.echo(f"skipped: {line}", err=True)
    if json_file is not None:
        write_file(json_file, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
