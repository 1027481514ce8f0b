"""Keeps the compiling libraries quiet, so that a terminal shows the build's own phases.

What they print is kept and logged when the build fails. They are also kept from reporting to their
makers: a build talks to nobody but the hub that it downloads from.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

logger = logging.getLogger(__name__)

CHATTY_LOGGERS = ("nncf", "optimum", "transformers", "huggingface_hub", "torch", "openvino")
MAX_LOGGED_CHARS = 20_000


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence prints, warnings, progress bars and log records of the libraries inside."""
    said = io.StringIO()
    levels = {name: logging.getLogger(name).level for name in CHATTY_LOGGERS}
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            _switch_off_telemetry()
            _switch_off_progress_bars()
            for name in CHATTY_LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    except Exception:
        logger.debug("the libraries said: %s", said.getvalue()[-MAX_LOGGED_CHARS:])
        raise
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _switch_off_telemetry() -> None:
    # OpenVINO's converter and NNCF report each use unless a file in the home folder declines; this
    # declines without leaving a file there.
    checker = importlib.import_module("openvino_telemetry.utils.opt_in_checker")
    declined = checker.ConsentCheckResult.DECLINED
    checker.OptInChecker.check = lambda self, *args, **kwargs: declined


def _switch_off_progress_bars() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()
