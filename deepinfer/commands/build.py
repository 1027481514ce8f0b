"""`deepinfer build`: plan, print the plan, and compile.

The plan goes to stdout and the progress to stderr. `--json` makes stdout one JSON object.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from deepinfer.adapter import Adapter
    from deepinfer.checkpoint import Checkpoint
    from deepinfer.compiler.options import BuildOptions
    from deepinfer.compiler.plan_types import BuildPlan
    from deepinfer.compiler.progress import Progress
    from deepinfer.compiler.targets import TargetDevice

SIGNAL_EXIT = 128  # plus the signal's number, as shells report it


class BuildOption(click.Option):
    """A flag whose help, values and default come from the field of `BuildOptions`."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from deepinfer.compiler.options import BuildOptions, describe_values

        field = BuildOptions.model_fields[str(self.name)]
        self.metavar = describe_values(field)
        self.help = f"{field.description}."
        if field.default is not None and not field.is_required():
            self.help += f"  [default: {field.default}]"
        return super().get_help_record(ctx)


@click.command()
@click.option("--model", cls=BuildOption)
@click.option("--revision", cls=BuildOption)
@click.option("--lora", cls=BuildOption)
@click.option("--output", cls=BuildOption)
@click.option("--name", cls=BuildOption)
@click.option("--backend", cls=BuildOption)
@click.option("--precision", cls=BuildOption)
@click.option("--kv-cache-precision", cls=BuildOption)
@click.option("--group-size", cls=BuildOption)
@click.option("--target", cls=BuildOption)
@click.option("--max-batch-size", cls=BuildOption)
@click.option("--max-input-len", cls=BuildOption)
@click.option("--max-seq-len", cls=BuildOption)
@click.option("--max-num-tokens", cls=BuildOption)
@click.option("--tensor-parallel-size", cls=BuildOption)
@click.option("--pipeline-parallel-size", cls=BuildOption)
@click.option("--max-lora-rank", cls=BuildOption)
@click.option("--max-loras", cls=BuildOption)
@click.option("--calib-data", cls=BuildOption)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="YAML file with any of these options; flags override it.",
)
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Print the plan and exit.")
@click.option(
    "--compare",
    "is_comparison",
    is_flag=True,
    help="Print an estimate for each precision of the device and exit.",
)
@click.option("--force", "is_forced", is_flag=True, help="Rebuild an engine that is up to date.")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    default=None,
    help="Run Python code from the checkpoint.",
)
@click.option(
    "--experimental",
    is_flag=True,
    default=None,
    help="Allow combinations that the library builds but does not list as supported.",
)
@click.option(
    "--allow-untried-release",
    is_flag=True,
    default=None,
    help="Allow a TensorRT-LLM release other than 1.2.1, the only one tested.",
)
@click.option(
    "--gather-logits",
    is_flag=True,
    default=None,
    help="Build a GPU engine that can return top_logprobs.",
)
@click.option(
    "--no-smoke-test",
    "smoke_test",
    is_flag=True,
    flag_value=False,
    default=None,
    help="Skip the test that generates a few tokens after a GPU build.",
)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def build(
    recipe: Path | None,
    is_dry_run: bool,
    is_comparison: bool,
    is_forced: bool,
    is_json: bool,
    **flags: Any,
) -> None:
    """Compile a Hugging Face checkpoint into an engine."""
    from deepinfer.compiler.options import read_options
    from deepinfer.compiler.plan import check_room, make_plan
    from deepinfer.compiler.report import plan_as_json
    from deepinfer.manifest import find_origins

    options = read_options(recipe, flags)
    device, checkpoint, adapter = _read_sources(options, is_build=not (is_dry_run or is_comparison))
    if is_comparison:
        _print_comparison(device, checkpoint, options, adapter, is_json=is_json)
        return
    plan = make_plan(device, checkpoint, options, adapter, find_origins(options.output))
    if is_dry_run:
        if is_json:
            _print_json(plan_as_json(plan))
        else:
            _print_plan(plan)
        return
    if not is_json:
        _print_plan(plan)
    check_room(plan)
    with _clean_exit_on_signals():
        _build(options, checkpoint, adapter, plan, is_forced=is_forced, is_json=is_json)


def _read_sources(
    options: BuildOptions, *, is_build: bool
) -> tuple[TargetDevice, Checkpoint, Adapter | None]:
    """The device, the checkpoint and the adapter; only a build needs the card and the weights."""
    from deepinfer.compiler import plan_cpu
    from deepinfer.compiler.architectures import find_architecture
    from deepinfer.compiler.source import find_adapter, find_checkpoint
    from deepinfer.compiler.staging import free_disk_bytes
    from deepinfer.compiler.targets import require_here, resolve_target
    from deepinfer.device import read_machine
    from deepinfer.errors import UnreadableModel
    from deepinfer.trtllm_release import installed_version

    device = resolve_target(
        options.target,
        read_machine(),
        free_disk_bytes(options.output),
        backend=options.backend,
        has_tensorrt_llm=installed_version() is not None,
    )
    if is_build:
        require_here(device)
    try:
        checkpoint = find_checkpoint(options.model, options.revision, needs_weights=is_build)
    except UnreadableModel as error:
        # That no model of this kind can be built is the more useful error.
        if device.kind == "gpu":
            find_architecture(error.architecture)
        else:
            plan_cpu.check_architecture(error.architecture)
        raise
    adapter = find_adapter(options.lora) if options.lora else None
    return device, checkpoint, adapter


def _build(
    options: BuildOptions,
    checkpoint: Checkpoint,
    adapter: Adapter | None,
    plan: BuildPlan,
    *,
    is_forced: bool,
    is_json: bool,
) -> None:
    from deepinfer.compiler.build import build_engine, load_compiler
    from deepinfer.compiler.report import result_as_json, result_lines
    from deepinfer.compiler.source import fetch_weights
    from deepinfer.compiler.tokenizer_files import check_converter
    from deepinfer.terminal import echo
    from deepinfer.trtllm_libraries import require_tensorrt
    from deepinfer.trtllm_release import untried_warning

    versions = load_compiler(plan).read_versions(plan)  # before anything is downloaded
    if plan.backend == "tensorrt-llm":
        if (warning := untried_warning(versions[plan.backend])) is not None:
            click.echo(f"warning: {warning}", err=True)
        require_tensorrt()
    check_converter(checkpoint)
    progress = _make_progress()
    checkpoint = fetch_weights(checkpoint, progress, with_code=plan.trust_remote_code)
    result = build_engine(
        plan,
        checkpoint,
        options.output,
        progress,
        adapter=adapter,
        is_forced=is_forced,
        is_name_asked=options.name is not None,
    )
    if is_json:
        _print_json(result_as_json(plan, result))
        return
    for line in result_lines(plan, result):
        echo(line)


def _make_progress() -> Progress:
    from deepinfer.compiler.progress import LiveProgress, Progress

    return LiveProgress() if sys.stderr.isatty() else Progress()


def _print_plan(plan: BuildPlan) -> None:
    from deepinfer.compiler.report import PLAN_HEADERS, plan_rows
    from deepinfer.terminal import print_table

    print_table(plan_rows(plan), headers=PLAN_HEADERS)


def _print_comparison(
    device: TargetDevice,
    checkpoint: Checkpoint,
    options: BuildOptions,
    adapter: Adapter | None,
    *,
    is_json: bool,
) -> None:
    from deepinfer.compiler.plan import compare_precisions, make_plan
    from deepinfer.compiler.report import COMPARISON_HEADERS, comparison_rows
    from deepinfer.errors import PlanError
    from deepinfer.terminal import print_table

    estimates = compare_precisions(device, checkpoint, options, adapter)
    try:
        chosen = make_plan(device, checkpoint, options, adapter).precision
    except PlanError:
        chosen = None  # the table has the reason for each
    if is_json:
        precisions = [estimate.model_dump(mode="json") for estimate in estimates]
        found = {"model_id": checkpoint.id, "target": device.name, "chosen": chosen}
        _print_json({**found, "precisions": precisions})
        return
    print_table(comparison_rows(estimates, chosen), headers=COMPARISON_HEADERS)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


@contextmanager
def _clean_exit_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, as Ctrl-C does, so that nothing half-built is left.

    `nohup` has SIGHUP ignored, and it stays so.
    """

    def exit_now(number: int, _: object) -> None:
        raise SystemExit(SIGNAL_EXIT + number)

    previous = {
        number: signal.signal(number, exit_now)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
