"""With guesses, by prompt lookup or a draft, the CPU backend answers as without, in fewer steps."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from deepinfer.backends.base import Backend
from deepinfer.backends.loading import load_backend
from deepinfer.backends.openvino_speculation import Speculation
from deepinfer.engine import EngineOptions
from deepinfer.errors import UnsupportedParameter
from deepinfer.generation import FinishReason, GenerationRequest, Grammar, TokenChunk
from deepinfer.manifest import EngineFolder, read_engine
from deepinfer.runtime.client import EngineClient
from deepinfer.text.json_grammar import make_grammar
from tests.backends.test_promises import make_request, run, tokens
from tests.building import BuildEngine
from tests.runtime.running import collect, connected, pid_of

MAX_SEQ_LEN = 256
MAX_BATCH_SIZE = 8
NUM_GUESSES = 5
NUM_BLOCKS = 14  # of 32 tokens: too few for full batches, so that admission has to wait
REPEATING = (20, 21, 22, 23) * 6
NUM_BEFORE_KILL = 6
LETTERS = Grammar("regex", "[a-z ]{300}")  # more than the longest answer
WORDS = Grammar("regex", "((red|green|blue) ){6,9}")
PAIRS = Grammar(
    "json_schema",
    ebnf=make_grammar(
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"enum": ["a", "b"]}, "is_old": {"type": "boolean"}},
                "required": ["name", "is_old"],
                "additionalProperties": False,
            },
            "maxItems": 4,
        }
    ),
)
SAMPLINGS: dict[str, dict[str, object]] = {
    "greedy": {},
    "sampled": {"temperature": 0.7, "top_p": 0.9, "top_k": 40},
    "repetition penalty": {"repetition_penalty": 1.2},
    "other penalties": {"presence_penalty": 0.6, "frequency_penalty": 0.3},
    "stop tokens": {"stop_token_ids": tuple(range(0, 512, 40)), "ignore_eos": False},
    "regular expression": {"grammar": WORDS, "ignore_eos": False},
    "JSON schema": {"grammar": PAIRS, "ignore_eos": False},
    "grammar to the limit": {"grammar": WORDS},
    "sampled in a grammar": {"grammar": WORDS, "ignore_eos": False, "temperature": 0.7},
}
# How an answer goes on in another life of the engine: its tokens being a part of the prompt, or
# generated once more.
LONG_ANSWERS: dict[str, dict[str, object]] = {
    "continued": {},
    "continued with a penalty": {"repetition_penalty": 1.2},
    "replayed for its penalty": {"frequency_penalty": 0.3},
    "replayed for its grammar": {"grammar": LETTERS},
}


@pytest.fixture(scope="module")
def engine(build_engine: BuildEngine) -> EngineFolder:
    # Eight sequences with their guesses are more tokens than this engine runs in a step.
    limits = ("--max-seq-len", "256", "--max-batch-size", "8", "--max-num-tokens", "32")
    return build_engine("llama", "fp32", *limits).engine


def load(engine: EngineFolder, options: EngineOptions) -> Backend:
    kv_bytes_per_token = engine.manifest.kv_bytes_per_token
    if options.draft_engine is not None:
        kv_bytes_per_token += read_engine(Path(options.draft_engine)).manifest.kv_bytes_per_token
    cache_bytes = kv_bytes_per_token * 32 * NUM_BLOCKS
    options = msgspec.structs.replace(options, kv_cache_bytes=cache_bytes)
    return load_backend(engine, options, lambda *_: None)


@pytest.fixture(scope="module")
def plain(engine: EngineFolder) -> Iterator[Backend]:
    backend = load(engine, EngineOptions())
    yield backend
    backend.close()


@pytest.fixture(scope="module", params=["prompt lookup", "draft"])
def options(request: pytest.FixtureRequest, build_engine: BuildEngine) -> EngineOptions:
    if request.param == "prompt lookup":
        return EngineOptions(prompt_lookup=NUM_GUESSES)
    # The same model in 4 bits: right often enough, and wrong often enough.
    draft = build_engine("llama", "int4", "--max-seq-len", "256").engine
    return EngineOptions(draft_engine=str(draft.path), draft_tokens=NUM_GUESSES)


@pytest.fixture(scope="module")
def guessing(engine: EngineFolder, options: EngineOptions) -> Iterator[Backend]:
    backend = load(engine, options)
    yield backend
    backend.close()


def repeating_requests(seed: int, count: int, **sampling: object) -> list[GenerationRequest]:
    """Half of them fill their blocks to the last token, where counting goes wrong first."""
    rng = random.Random(seed)
    requests = []
    for i in range(count):
        total = rng.choice([32, 64, 128]) if i % 2 else rng.randint(20, 160)
        words = rng.choices(range(10, 200), k=rng.randint(1, 8))
        prompt = (words * total)[: rng.randint(1, total - 1)]
        values = {"seed": i} | sampling
        requests.append(make_request(str(i), prompt, total - len(prompt), **values))
    return requests


def summary(chunks: Sequence[TokenChunk]) -> tuple[tuple[int, ...], FinishReason | None]:
    return tokens(chunks), chunks[-1].finish_reason


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_answers_are_those_without_guesses(
    plain: Backend, guessing: Backend, options: EngineOptions, sampling: dict[str, object]
) -> None:
    requests = repeating_requests(1, 24, **sampling)
    if options.draft_engine is not None and not requests[0].sampling.is_greedy:
        with pytest.raises(UnsupportedParameter, match="for greedy requests only") as caught:
            guessing.check(requests[0])
        assert caught.value.param == "temperature"
        return
    expected = {name: summary(chunks) for name, chunks in run(plain, requests).items()}
    together = run(guessing, requests)
    assert {name: summary(chunks) for name, chunks in together.items()} == expected
    alone = {request.request_id: run(guessing, [request]) for request in requests[:6]}
    for name, chunks in alone.items():
        assert summary(chunks[name]) == expected[name]
    # Some guesses are right, or all this would show nothing.
    assert any(len(chunk.token_ids) > 1 for chunks in together.values() for chunk in chunks)


@pytest.mark.parametrize("max_tokens", range(1, 14))
def test_max_tokens_is_kept_to_the_token(guessing: Backend, max_tokens: int) -> None:
    chunks = run(guessing, [make_request("a", REPEATING, max_tokens)])["a"]
    assert len(tokens(chunks)) == max_tokens
    assert chunks[-1].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("total", "count"), [(27, 8), (64, 7)], ids=["every place is taken", "cache is full"]
)
def test_full_batch_of_guesses_has_room(
    plain: Backend, guessing: Backend, total: int, count: int
) -> None:
    requests = [make_request(str(i), (20 + i, 7, 8, 9) * 4, total - 16) for i in range(count)]
    expected = {name: summary(chunks) for name, chunks in run(plain, requests).items()}
    found = {name: summary(chunks) for name, chunks in run(guessing, requests).items()}
    assert found == expected


def test_step_holds_a_full_batch_with_its_guesses(engine: EngineFolder) -> None:
    limits = engine.manifest.limits
    wide = limits.model_copy(update={"max_num_tokens": 300})
    assert (limits.max_num_tokens, limits.max_batch_size, limits.max_seq_len) == (32, 8, 256)
    assert Speculation(5).batched_tokens(limits) == 48
    assert Speculation(5).batched_tokens(wide) == 300
    assert Speculation(0).batched_tokens(limits) == 32
    assert Speculation(5, draft=engine).batched_tokens(limits) == 256  # a whole prompt


def test_stop_token_in_the_middle_of_a_step_is_the_last(guessing: Backend) -> None:
    prompt, free = next(
        (prompt, chunks)
        for first in range(20, 60)
        for prompt in [with_own_answer(guessing, first)]
        for chunks in [run(guessing, [make_request("a", prompt, 40)])["a"]]
        if new_in_midst(chunks)
    )
    stop = new_in_midst(free)[0]
    chunks = run(guessing, [make_request("b", prompt, 40, stop_token_ids=(stop,))])["b"]
    assert chunks[-1].finish_reason is FinishReason.STOP
    assert tokens(chunks) == tokens(free)[: tokens(free).index(stop) + 1]


def with_own_answer(backend: Backend, first: int) -> tuple[int, ...]:
    """A prompt whose answer goes on as it does already, so that guesses are right at once."""
    prompt = (first, first + 1, first + 2)
    return prompt + tokens(run(backend, [make_request("own", prompt, 120)])["own"])


def new_in_midst(chunks: Sequence[TokenChunk]) -> list[int]:
    """Tokens that come first in a step of several, and not as the last of it."""
    return [
        token_id
        for i, chunk in enumerate(chunks)
        for token_id in chunk.token_ids[:-1]
        if token_id not in tokens(chunks[:i])
        and chunk.token_ids.index(token_id) < len(chunk.token_ids) - 1
    ]


def test_conversation_goes_on_as_without_guesses(plain: Backend, guessing: Backend) -> None:
    # Continuations that the library would have guessed from a turn before are the ones for which
    # a prefix cache would find blocks of guesses.
    rng = random.Random(7)
    for _ in range(12):
        words = [rng.choices(range(10, 200), k=rng.randint(2, 8)) for _ in range(4)]
        ids = [token_id for _ in range(3) for token_id in rng.choice(words)]
        while len(ids) < 190:
            request = make_request("a", ids, rng.randint(1, 50))
            answer = tokens(run(plain, [request])["a"])
            assert tokens(run(guessing, [request])["a"]) == answer
            ids += answer[: rng.randint(0, len(answer))]
            guess = ids.index(ids[-1]) + 1
            ids += ids[guess : guess + rng.randint(0, 30)] + rng.choice(words)


def test_each_token_has_its_log_prob(plain: Backend, guessing: Backend) -> None:
    for num_log_probs in (0, 2):
        request = make_request("a", REPEATING, 60, num_log_probs=num_log_probs)
        found = [p for chunk in run(guessing, [request])["a"] for p in chunk.log_probs]
        expected = [p for chunk in run(plain, [request])["a"] for p in chunk.log_probs]
        assert len(found) == 60
        assert [p.log_prob for p in found] == pytest.approx(
            [p.log_prob for p in expected], abs=1e-4
        )


def test_cancelled_request_gives_its_room_back(guessing: Backend) -> None:
    guessing.add(make_request("a", REPEATING, 100))
    guessing.add(make_request("b", (30, 31, 32), 60))
    for _ in range(4):
        guessing.step()
    guessing.cancel("a")
    names, last = set(), None
    while last is None:
        for chunk in guessing.step():
            names.add(chunk.request_id)
            last = chunk.finish_reason
    assert names == {"b"}
    assert guessing.num_used_blocks == 0
    longest = make_request("c", REPEATING, MAX_SEQ_LEN - len(REPEATING))
    assert len(tokens(run(guessing, [longest])["c"])) == MAX_SEQ_LEN - len(REPEATING)


async def test_answers_of_a_killed_engine_go_on_as_without_guesses(
    plain: Backend, engine: EngineFolder, options: EngineOptions
) -> None:
    requests = [
        make_request(name, REPEATING, MAX_SEQ_LEN - len(REPEATING), **sampling)
        for name, sampling in LONG_ANSWERS.items()
    ]
    expected = {name: tokens(chunks) for name, chunks in run(plain, requests).items()}
    async with connected(engine, options) as client:
        # A grammar is tried before it is first used, while the other answers would come to an end.
        await collect(client, make_request("tried", (1,), 1, grammar=LETTERS))
        assert await generate_over_a_death(client, requests) == expected
        assert client.num_restarts == 1
        assert client.num_resumed == len(requests)


async def generate_over_a_death(
    client: EngineClient, requests: Sequence[GenerationRequest]
) -> dict[str, tuple[int, ...]]:
    """Each request's tokens, of an engine that is killed once each of them has some."""
    answers: dict[str, tuple[int, ...]] = {request.request_id: () for request in requests}
    pid = pid_of(client)
    async for chunks in client.generate(requests):
        for chunk in chunks:
            answers[chunk.request_id] += chunk.token_ids
        if pid is not None and min(map(len, answers.values())) >= NUM_BEFORE_KILL:
            os.kill(pid, signal.SIGKILL)
            pid = None
    return answers


def test_min_tokens_is_refused_by_name(plain: Backend, guessing: Backend) -> None:
    request = make_request("a", REPEATING, 20, min_tokens=3)
    plain.check(request)
    with pytest.raises(UnsupportedParameter, match="without `--prompt-lookup`") as caught:
        guessing.check(request)
    assert caught.value.param == "min_tokens"
