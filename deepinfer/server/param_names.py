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

    The keys are paths into a chat, in which `[]` is any place of an array, as in the values; what
    follows them stays as it is.
    """
    for ours, theirs in names.items():
        path = re.escape(ours).replace(r"\[\]", r"\[(\d+)\]")
        name = theirs.replace("[]", r"[\1]")
        error.message = re.sub(rf"`{path}(?=[`.\[])", f"`{name}", error.message)
        if error.param is not None:
            error.param = re.sub(rf"^{path}(?=$|[.\[])", name, error.param)
