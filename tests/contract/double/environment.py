"""The environment in which `tensorrt_llm` was imported: what the processes that MPI starts get.

MPI takes a process's environment when it is initialised, which importing the library does. Of later
changes only the library's own variables are passed on.
"""

from __future__ import annotations

import os

OWN_PREFIXES = ("TRTLLM", "TLLM")

_imported_in: dict[str, str] = {}


def note_import() -> None:
    """Called by the package itself, each time that it is imported."""
    _imported_in.clear()
    _imported_in.update(os.environ)


def worker_environment() -> dict[str, str]:
    """What a process that is started now finds in its environment."""
    own = {name: value for name, value in os.environ.items() if name.startswith(OWN_PREFIXES)}
    return _imported_in | own
