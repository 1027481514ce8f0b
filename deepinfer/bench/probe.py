"""Gets to know a server before it is measured: its model, its tokens, and what it does not take.

Servers differ. One that refuses `stream_options` is asked without; what cannot be done without is
an error that says so in the server's own words.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from deepinfer.bench.client import BenchClient
from deepinfer.bench.connection import ConnectionEnded
from deepinfer.bench.corpus import read_words
from deepinfer.bench.events import read_error_message, read_usage
from deepinfer.bench.target import PATHS, Prompt, Target
from deepinfer.errors import BenchError

PROBE_WORDS = 512
PROBE_TIMEOUT_S = 120.0
PROBE_TOKENS = 4


@dataclass(frozen=True)
class Acquaintance:
    """What is known of a server, and what had to be done differently for it."""

    target: Target
    tokens_per_word: float
    token_ids: tuple[int, ...]  # of the corpus; none where the server does not tokenise
    notes: tuple[str, ...]


async def get_acquainted(target: Target, *, needs_ids: bool) -> Acquaintance:
    """Raises BenchError when the server cannot be measured as it is to be."""
    client = BenchClient(target, timeout_s=PROBE_TIMEOUT_S)
    target = msgspec.structs.replace(target, model=target.model or await _find_model(client))
    client.target = target
    target, notes = await _adapt(client)
    client.target = target
    words = read_words()
    passage = " ".join(words[:: len(words) // PROBE_WORDS][:PROBE_WORDS])
    ids = await _tokenize(client, " ".join(words) if needs_ids else passage)
    if needs_ids and not ids:
        raise BenchError(
            "`--prompts ids` needs a server with a `/tokenize` route, and this one has none",
            hint="leave it out: prompts are then text",
        )
    if needs_ids:
        return Acquaintance(target, len(ids) / len(words), ids, notes)
    num_tokens = len(ids) or await _count_by_usage(client, passage)
    if not num_tokens:
        notes = (*notes, "the server counts no prompt tokens: 1.3 tokens a word are assumed")
    return Acquaintance(target, (num_tokens or 1.3 * PROBE_WORDS) / PROBE_WORDS, (), notes)


async def fetch(
    client: BenchClient, method: str, path: str, fields: dict[str, object] | None = None
) -> tuple[int, bytes]:
    """As the client's, but whatever goes wrong on the way is an error for people."""
    try:
        return await client.fetch(method, path, fields)
    except (OSError, TimeoutError, ConnectionEnded) as error:
        said = getattr(error, "strerror", None) or str(error) or "no answer in time"
        raise BenchError(
            f"cannot reach {client.target.url}: {said}",
            hint="start the server, or let `--engine-dir` start one",
        ) from error


async def _find_model(client: BenchClient) -> str:
    status, body = await fetch(client, "GET", "/v1/models")
    if status == 401:
        raise BenchError(
            "the server asks for an API key", hint="set OPENAI_API_KEY or `--api-key-file`"
        )
    try:
        return str(msgspec.json.decode(body)["data"][0]["id"])
    except (msgspec.DecodeError, KeyError, IndexError, TypeError):
        raise BenchError(
            f"{client.target.url}/v1/models lists no model (HTTP {status})",
            hint="name one with `--model`",
        ) from None


async def _adapt(client: BenchClient) -> tuple[Target, tuple[str, ...]]:
    """The target with what it takes of the fields that we would send."""
    target = client.target
    status, body = await _try(client, target)
    if status == 400 and target.is_streaming and b"stream_options" in body:
        target = msgspec.structs.replace(target, with_usage=False)
        status, body = await _try(client, target)
        if status == 200:
            return target, ("the server takes no `stream_options`: tokens are counted by events",)
    if status != 200:
        hint = None
        if target.ignores_eos and b"ignore_eos" in body:
            hint = "leave out `--ignore-eos`; answers may then end early, which the report counts"
        raise BenchError(
            f"the server refuses the benchmark's request (HTTP {status}): "
            f"{read_error_message(body)}",
            hint=hint,
        )
    return target, ()


async def _try(client: BenchClient, target: Target) -> tuple[int, bytes]:
    fields = target.body(Prompt("Once upon a time", PROBE_TOKENS))
    return await fetch(client, "POST", PATHS[target.route], fields)


async def _tokenize(client: BenchClient, text: str) -> tuple[int, ...]:
    """Nothing where the server has no such route, or answers otherwise than is known."""
    fields: dict[str, object] = {"model": client.target.model, "prompt": text}
    status, body = await fetch(client, "POST", "/tokenize", fields)
    try:
        tokens = msgspec.json.decode(body)["tokens"] if status == 200 else ()
        return msgspec.convert(tokens, tuple[int, ...])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return ()


async def _count_by_usage(client: BenchClient, text: str) -> int:
    """The prompt tokens of a plain request with this text; 0 when the server does not say."""
    target = msgspec.structs.replace(client.target, is_streaming=False)
    status, body = await fetch(client, "POST", PATHS[target.route], target.body(Prompt(text, 1)))
    usage = read_usage(body) if status == 200 else None
    return (usage or {}).get("prompt_tokens", 0)
