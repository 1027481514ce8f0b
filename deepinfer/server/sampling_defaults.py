"""How a checkpoint wants to be sampled where a client does not say it: generation_config.json.

/v1/responses and /v1/messages take these values. /v1/completions and /v1/chat/completions do not:
their defaults are those of the API reference.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from deepinfer.server.schema_base import Schema
from deepinfer.server.schemas import GenerationBody

logger = logging.getLogger(__name__)

# What transformers and vLLM read there, too.
NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

Body = TypeVar("Body", bound=Schema)


def read_sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a client might send as well; the log names those that it might not."""
    found = {}
    for name in NAMES:
        value = generation_config.get(name)
        if value is None:
            continue
        try:
            found[name] = getattr(GenerationBody.model_validate({name: value}), name)
        except ValidationError:
            logger.warning(
                "generation_config.json gives `%s` as %.40r, which no request could; ignored",
                name,
                value,
            )
    return found


def with_sampling_defaults(body: Body, defaults: Mapping[str, Any]) -> Body:
    """`body` with `defaults` for those of its fields that the client left out."""
    fields = type(body).model_fields
    left_out = {
        name: value
        for name, value in defaults.items()
        if name in fields and name not in body.model_fields_set
    }
    return body.model_copy(update=left_out) if left_out else body
