"""Parameters that clients know from other servers and that this one does not honour.

Each is accepted with the values that ask for nothing, and refused by name with any other: silence
would be a wrong answer. Fields that nobody knows are another matter; they change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STANDING = "x-standing"
"""In a schema of a field: what comes of it, if it is not simply honoured."""

# Fields that are honoured in another form than they are sent in.
TRANSLATED = frozenset(
    {
        "chat_template_kwargs",
        "guided_choice",
        "guided_grammar",
        "grammar",
        "guided_json",
        "guided_regex",
        "max_completion_tokens",
        "messages",
        "reasoning_effort",
        "response_format",
        "structured_outputs",
        "tools",
        "verbosity",
    }
)

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
    "lora_request": (),  # an adapter is chosen by its name as `model`
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

MESSAGES: Neutral = {
    "compaction": (),
    "container": (),
    "inference_geo": ("global",),
    "mcp_servers": ([],),
    "speed": ("standard",),
    "thread": (),
}

MESSAGES_TOOL: Neutral = {
    "allowed_callers": (["direct"],),
}

# The third group is what chats call otherwise: silence would leave it undone.
RESPONSES: Neutral = {
    **GENERATION,
    "access_programs": (),
    "background": (False,),
    "background_options": ({},),
    "context_management": ([],),
    "conversation": (),
    "image": ({},),
    "moderation": (),
    "prompt": (),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "max_completion_tokens": (),
    "max_tokens": (),
    "messages": (),
    "n": (1,),
    "reasoning_effort": (),
    "response_format": (),
}

# A summary is as detailed as it can be where the thoughts are shown whole.
RESPONSE_REASONING: Neutral = {
    "context": ("auto",),
    "generate_summary": ("auto", "concise", "detailed"),
    "mode": ("standard",),
    "summary": ("auto", "concise", "detailed", "none"),
}

RESPONSE_TOOL: Neutral = {
    "allowed_callers": (["direct"],),
    "async": (False,),
}

TOKENIZE: Neutral = {
    "chat_template": (),
    "mm_processor_kwargs": ({},),
    "return_token_strs": (False,),
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


CHAT_WITHOUT_EFFECT = {
    **WITHOUT_EFFECT,
    "prediction": "Accepted; the answer is the same without it",
}

STREAM_OPTIONS_WITHOUT_EFFECT = {
    "include_obfuscation": "Accepted; events are not padded",
}

MESSAGES_WITHOUT_EFFECT = {
    "cache_control": "Accepted; prompts share their cache without it",
    "diagnostics": "Accepted; there are none",
    "fallbacks": "Accepted; no request is declined",
    "metadata": "Accepted; not kept",
    "service_tier": "Accepted; there is one tier",
}

MESSAGES_TOOL_WITHOUT_EFFECT = {
    "cache_control": "Accepted; prompts share their cache without it",
    "defer_loading": "Accepted; all tools are loaded at once",
    "eager_input_streaming": "Accepted; an input is sent when it is whole",
}


RESPONSES_WITHOUT_EFFECT = {
    "client_metadata": "Accepted; not kept",
    "prompt_cache_options": "Accepted; prompts share their cache without it",
    "prompt_cache_retention": "Accepted; prompts share their cache without it",
    "service_tier": "Accepted; there is one tier",
}

RESPONSE_COMPACT_WITHOUT_EFFECT = {
    "prompt_cache_key": "Accepted; prompts share their cache without it",
    "prompt_cache_options": "Accepted; prompts share their cache without it",
    "prompt_cache_retention": "Accepted; prompts share their cache without it",
    "service_tier": "Accepted; there is one tier",
}

RESPONSE_PROMPT_WITHOUT_EFFECT = {
    "personality": "Accepted; models here have one",
}

RESPONSE_STREAM_OPTIONS_WITHOUT_EFFECT = {
    "include_obfuscation": "Accepted; events are not padded",
}

RESPONSE_TOOL_WITHOUT_EFFECT = {
    "defer_loading": "Accepted; all tools are loaded at once",
    "input_examples": "Accepted; not shown to the model",
    "output_schema": "Accepted; results are not checked",
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
        name: {
            "enum": [None, *values],
            "description": "Not supported beyond these values",
            STANDING: "refused",
        }
        for name, values in neutral.items()
    }
