"""Write docs/cli.md from the `--help` of every command: `make docs`.

A test compares the file with what this writes, so that the page cannot fall behind the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from deepinfer.cli import cli

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = 100  # columns
INTRODUCTION = """\
# The command line

Written by `make docs` from the commands' own `--help`; change it there.

Data goes to stdout and messages to stderr. Exit codes: 0 success, 1 an error, 2 a wrong command
line, 130 interrupted. An error is one line, `error: ...`, mostly with a second, `hint: ...`, that
says the way out.
"""


def render_page() -> str:
    sections = [
        f"## `{ctx.command_path}`\n\n```text\n{ctx.get_help()}\n```\n" for ctx in walk(cli, None)
    ]
    return "\n".join([INTRODUCTION, *sections])


def walk(command: click.Command, parent: click.Context | None) -> Iterator[click.Context]:
    """The context of `command` and of every command below it, in the order of their listing."""
    ctx = click.Context(
        command,
        info_name=command.name if parent else "deepinfer",
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        **command.context_settings,
    )
    yield ctx
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None
            yield from walk(child, ctx)


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
