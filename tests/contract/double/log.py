"""The library's logger: one handler, bound to the stdout of the moment when it is imported.

Its records do not reach the root logger, so whoever redirects stdout later, or listens to the root,
sees none of them.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

NAME = "TRT-LLM"
LEVEL_VARIABLE = "TLLM_LOG_LEVEL"
DEFAULT_LEVEL = "WARNING"

logger = logging.getLogger(NAME)


class _StdoutHandler(logging.StreamHandler[TextIO]):
    """The library's own, told from those that a test adds."""


def bind_to_stdout() -> None:
    """What happens when the library is imported."""
    handler = _StdoutHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("[TRT-LLM] [%(levelname)s] %(message)s"))
    of_tests = [other for other in logger.handlers if not isinstance(other, _StdoutHandler)]
    logger.handlers = [handler, *of_tests]
    logger.propagate = False
    logger.setLevel(os.environ.get(LEVEL_VARIABLE, DEFAULT_LEVEL).upper())
