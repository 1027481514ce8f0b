"""`deepinfer doctor`: print what works on this machine, and the one thing to do about the rest."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from deepinfer.doctor.finding import Finding, Report

COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command()
@click.option(
    "--engine-dir",
    type=click.Path(path_type=Path),
    default=Path("engines"),
    show_default=True,
    help="Folder of engines to look at.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="Port that the server would listen on.",
)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, engine_dir: Path, port: int, is_json: bool) -> None:
    """Check what works on this machine, and what to do about the rest.

    Exits with 1 only when engines cannot be served here.
    """
    from deepinfer.doctor.examine import examine

    report = examine(engine_dir, port)
    if is_json:
        listed = [dataclasses.asdict(finding) for finding in report.findings]
        document = {"can_serve": report.can_serve, "device": report.device, "findings": listed}
        click.echo(json.dumps(document, indent=2))
    else:
        _print_findings(report.findings)
        click.echo(_conclusion(report))
    if not report.can_serve:
        ctx.exit(1)


def _print_findings(findings: list[Finding]) -> None:
    from deepinfer.validation import escape_controls

    status_width = max(map(len, COLORS)) + 2
    topic_width = max(len(finding.topic) for finding in findings) + 2
    for finding in findings:
        status = click.style(finding.status.ljust(status_width), fg=COLORS[finding.status])
        click.echo(f"{status}{finding.topic.ljust(topic_width)}{escape_controls(finding.seen)}")
        if finding.advice:
            click.echo(f"{' ' * (status_width + topic_width)}-> {escape_controls(finding.advice)}")


def _conclusion(report: Report) -> str:
    works = f"engines can be served on this {report.device}"
    verdict = works if report.can_serve else "nothing can be served here"
    counts = Counter(finding.status.value for finding in report.findings)
    return f"{verdict}: " + ", ".join(f"{counts[status]} {status}" for status in COLORS)
