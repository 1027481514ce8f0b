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
    "add_special_tokens": (True,),
    "bad_words": ([],),
    "early_stopping": (False,),
    "ebnf": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "json_schema": (),
    "length_penalty": (1, 1.0),
    "lora_request": (),
    "priority": (0,),
    "prompt_logprobs": (),
    "regex": (),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
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
    "parallel_tool_calls": (True, False),  # of no tools
    "prediction": (),
    "reasoning_effort": ("none",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),  # the chat template writes them
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
}

MESSAGE: Neutral = {
    "audio": (),
    "function_call": (),
    "prefix": (False,),
    "tool_calls": ([],),
}

STREAM_OPTIONS: Neutral = {
    "continuous_usage_stats": (False,),
    "include_obfuscation": (False,),
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
