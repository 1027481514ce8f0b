"""`deepinfer` and `python -m deepinfer`: run the command line and turn errors into exit codes.

0 success, 1 an error, 2 a wrong command line, 130 interrupted. Messages go to stderr as
`error: ...` and `hint: ...`; tracebacks show only with --verbose.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Sequence

import click

from deepinfer.cli import cli
from deepinfer.errors import CommandError
from deepinfer.validation import as_one_line

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (sys.argv when None) and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "serve" in arguments and threading.current_thread() is threading.main_thread():
        # Until the server waits for it, which takes some seconds, there is nothing to drain.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        exit_code = cli.main(
            args=list(arguments) or ["--help"], prog_name="deepinfer", standalone_mode=False
        )
    except click.ClickException as error:
        return _fail(error.format_message().rstrip("."), _usage_hint(error), error.exit_code)
    except CommandError as error:
        logger.debug("traceback", exc_info=True)
        return _fail(error.message, error.hint, EXIT_ERROR)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:
        logger.debug("traceback", exc_info=True)
        hint = "`deepinfer --verbose <command> ...` shows the traceback"
        return _fail(f"internal: {type(error).__name__}: {error}", hint, EXIT_ERROR)
    return exit_code if isinstance(exit_code, int) else 0


def _usage_hint(error: click.ClickException) -> str | None:
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"`{error.ctx.command_path} --help` shows what is accepted"
    return None


def _fail(message: str, hint: str | None, exit_code: int) -> int:
    click.echo(f"error: {as_one_line(message)}", err=True)
    if hint:
        click.echo(f"hint: {as_one_line(hint)}", err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
