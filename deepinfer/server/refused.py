"""Parameters that clients know from other servers and that this one does not honour.

Each is accepted with the values that ask for nothing, and refused by name with any other: silence
would be a wrong answer. Fields that nobody knows are another matter; they change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Neutral = Mapping[str, tuple[Any, ...]]
"""By name, the values besides null that ask for nothing."""

# Of every route that generates. The second group is known from vLLM, SGLang and TensorRT-LLM.
GENERATION: Neutral = {
    "allowed_token_ids": (),
    "bad_words": ([],),
    "early_stopping": (False,),
    "ebnf": (),
    "json_schema": (),
    "length_penalty": (1, 1.0),
    "lora_request": (),
    "priority": (0,),
    "prompt_logprobs": (),
    "regex": (),
    "spaces_between_special_tokens": (True,),
    "use_beam_search": (False,),
}

COMPLETION: Neutral = {
    **GENERATION,
    "suffix": ("",),
}

CHAT: Neutral = {
    **GENERATION,
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
}

MESSAGE: Neutral = {
    "audio": (),
    "function_call": (),
    "prefix": (False,),
}

STREAM_OPTIONS: Neutral = {
    "include_obfuscation": (False,),
}

TOKENIZE: Neutral = {
    "chat_template": (),
    "mm_processor_kwargs": ({},),
    "return_token_strs": (False,),
    "tools": ([],),
}

# Fields that say something about the request and nothing about the answer.
WITHOUT_EFFECT = {
    "metadata": "Accepted; not kept",
    "prompt_cache_key": "Accepted; prompts share their cache without it",
    "safety_identifier": "Accepted; not kept",
    "service_tier": "Accepted; there is one tier",
    "store": "Accepted; answers are not stored",
    "user": "Accepted; not kept",
}


def find_refused(fields: Mapping[str, Any], neutral: Neutral) -> str | None:
    """The first of `fields` that is known here and asks for something."""
    for name, value in fields.items():
        if name in neutral and not _asks_for_nothing(value, neutral[name]):
            return name
    return None


def _asks_for_nothing(value: object, neutral: tuple[Any, ...]) -> bool:
    # Compared with their types: false equals 0 in Python, and not in JSON.
    return value is None or any(type(value) is type(n) and value == n for n in neutral)


def describe(neutral: Neutral) -> dict[str, Any]:
    """The refused fields as JSON Schema properties: each takes its neutral values only."""
    return {
        name: {"enum": [None, *values], "description": "Not supported beyond these values"}
        for name, values in neutral.items()
    }
