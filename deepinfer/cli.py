"""The command line's frame: one click group that finds each command when it is asked for.

It owns the options that every command shares. It knows the commands' names and summaries only;
what they do, and what an error looks like on the terminal, is said elsewhere.
"""

from __future__ import annotations

import importlib

import click

from deepinfer import __version__, logs
from deepinfer.commands import SUMMARIES
from deepinfer.validation import suggest


class LazyGroup(click.Group):
    """A group whose commands are imported when they run, and not to list them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUMMARIES:
            return None
        module = importlib.import_module(f"deepinfer.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in SUMMARIES and not ctx.resilient_parsing:
            ctx.fail(f"no such command `{args[0]}`; {suggest(args[0], SUMMARIES)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deepinfer", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", "is_verbose", is_flag=True, help="Log details and tracebacks.")
def cli(is_verbose: bool) -> None:
    """Compile Hugging Face checkpoints into engines, and serve engines over HTTP."""
    logs.configure("debug" if is_verbose else "warning")
