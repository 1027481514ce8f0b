"""One field under two names: routes that are served as chats say their own in errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deepinfer.errors import RequestError


@contextmanager
def renaming_params(names: Mapping[str, str]) -> Iterator[None]:
    """Errors that are raised within name a chat's fields as `names` does."""
    try:
        yield
    except RequestError as error:
        rename_params(error, names)
        raise


def rename_params(error: RequestError, names: Mapping[str, str]) -> None:
    """Name a chat's fields as `names` does, in the error's text and `param`.

    The keys are top-level fields of a chat; what follows them in a path stays as it is.
    """
    for ours, theirs in names.items():
        error.message = re.sub(rf"`{ours}(?=[`.\[])", f"`{theirs}", error.message)
        if error.param is not None and _leads_with(error.param, ours):
            error.param = theirs + error.param[len(ours) :]


def _leads_with(path: str, field: str) -> bool:
    return path == field or path.startswith((f"{field}.", f"{field}["))
