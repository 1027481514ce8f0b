"""`deepinfer doctor`: print the findings about this machine."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import click

COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command()
@click.option(
    "--engine-dir",
    type=click.Path(path_type=Path),
    default=Path("engines"),
    show_default=True,
    help="Folder of engines to check.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="Port to check for the server.",
)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, engine_dir: Path, port: int, is_json: bool) -> None:
    """Check what works on this machine, and what to do about the rest.

    Exits with 1 only if this machine cannot serve engines.
    """
    from deepinfer.doctor.examine import examine

    report = examine(engine_dir, port)
    if is_json:
        listed = [dataclasses.asdict(finding) for finding in report.findings]
        document = {"can_serve": report.can_serve, "device": report.device, "findings": listed}
        click.echo(json.dumps(document, indent=2))
    else:
        from deepinfer.validation import escape_controls

        status_width = max(map(len, COLORS)) + 2
        topic_width = max(len(finding.topic) for finding in report.findings) + 2
        for finding in report.findings:
            status = click.style(finding.status.ljust(status_width), fg=COLORS[finding.status])
            click.echo(f"{status}{finding.topic.ljust(topic_width)}{escape_controls(finding.seen)}")
            if finding.advice:
                click.echo(
                    f"{' ' * (status_width + topic_width)}-> {escape_controls(finding.advice)}"
                )
        verdict = "nothing can be served here"
        if report.can_serve:
            verdict = f"engines can be served on this {report.device}"
        counts = Counter(finding.status.value for finding in report.findings)
        click.echo(f"{verdict}: " + ", ".join(f"{counts[status]} {status}" for status in COLORS))
    if not report.can_serve:
        ctx.exit(1)
