"""What guessed tokens gain and cost: decode rates of one engine with them and without, alternating.

    python benchmarks/speculation.py ENGINE [--draft ENGINE] [--guesses 4] [--batch-sizes 1,4,16]

Guesses come from the draft, or without one from the sequence itself (prompt lookup).

Loads the engine twice in this process, both with the same number of threads, and runs the same
greedy requests on each in turn. Prints the median rates and the median of the ratios of pairs, and
whether answers were alike: below fp32 steps of several tokens round differently. Knows no server.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from random import Random
from statistics import median

from deepinfer.backends.base import Backend
from deepinfer.backends.loading import load_backend
from deepinfer.engine import EngineOptions
from deepinfer.generation import GenerationRequest, SamplingParams
from deepinfer.manifest import read_engine

PROMPT_LEN = 128
PATTERN_LEN = 16
NUM_TOKENS = 128
CACHE_BYTES = 2**30

Answers = dict[str, tuple[int, ...]]


def make_requests(
    rng: Random, vocab_size: int, count: int, repeats: bool
) -> list[GenerationRequest]:
    def make_prompt() -> tuple[int, ...]:
        length = PATTERN_LEN if repeats else PROMPT_LEN
        pattern = rng.choices(range(8, vocab_size), k=length)
        return tuple((pattern * PROMPT_LEN)[:PROMPT_LEN])

    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    return [
        GenerationRequest(request_id=str(i), prompt_token_ids=make_prompt(), sampling=sampling)
        for i in range(count)
    ]


def with_answers(requests: list[GenerationRequest], answers: Answers) -> list[GenerationRequest]:
    """Requests whose prompts hold what the model is about to say, as text that is quoted does."""
    return [
        GenerationRequest(
            request_id=request.request_id,
            prompt_token_ids=request.prompt_token_ids
            + answers[request.request_id]
            + request.prompt_token_ids,
            sampling=request.sampling,
        )
        for request in requests
    ]


def decode(backend: Backend, requests: list[GenerationRequest]) -> tuple[Answers, float]:
    """The answers, and the tokens a second from when every request has its first one."""
    for request in requests:
        backend.add(request)
    answers: Answers = {request.request_id: () for request in requests}
    num_running, started_at, num_before = len(requests), 0.0, 0
    while num_running:
        for chunk in backend.step():
            answers[chunk.request_id] += chunk.token_ids
            num_running -= chunk.finish_reason is not None
        if not started_at and all(answers.values()):
            started_at = time.perf_counter()
            num_before = sum(map(len, answers.values()))
    num_tokens = sum(map(len, answers.values())) - num_before
    return answers, num_tokens / (time.perf_counter() - started_at)


def compare(
    plain: Backend, guessing: Backend, vocab_size: int, batch_size: int, kind: str, num_trials: int
) -> bool:
    """Print one row; whether all answers were alike."""
    rates, is_exact = [], True
    for trial in range(num_trials + 1):
        rng = Random(f"{kind}:{batch_size}:{trial}")
        requests = make_requests(rng, vocab_size, batch_size, kind != "random")
        if kind == "quoting":
            requests = with_answers(requests, decode(plain, requests)[0])
        expected, plain_rate = decode(plain, requests)
        answers, rate = decode(guessing, requests)
        is_exact = is_exact and answers == expected
        if trial:  # the first one warms up
            rates.append((plain_rate, rate))
    without, guessed = (median(column) for column in zip(*rates, strict=True))
    ratio = median(rate / plain_rate for plain_rate, rate in rates)
    same = "yes" if is_exact else "no"
    print(f"| {kind} | {batch_size} | {without:,.0f} | {guessed:,.0f} | {ratio:.2f} | {same} |")
    return is_exact


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--draft", type=Path, help="an engine with the same tokens")
    parser.add_argument("--guesses", type=int, default=4, help="tokens guessed a step")
    parser.add_argument("--batch-sizes", default="1,4,16")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument(
        "--exact", action="store_true", help="end with status 1 when an answer differs"
    )
    arguments = parser.parse_args()
    engine = read_engine(arguments.engine)
    guesses = EngineOptions(kv_cache_bytes=CACHE_BYTES, prompt_lookup=arguments.guesses)
    if arguments.draft is not None:
        draft = str(arguments.draft.absolute())
        guesses = EngineOptions(
            kv_cache_bytes=CACHE_BYTES, draft_engine=draft, draft_tokens=arguments.guesses
        )
    plain, guessing = (
        load_backend(engine, options, lambda *_: None)
        for options in (EngineOptions(kv_cache_bytes=CACHE_BYTES), guesses)
    )
    kinds = ("repeating", "quoting", "random") if arguments.draft is None else ("random",)
    print("| prompts | batch | tokens/s without | with | ratio | same answers |")
    print("|---|---|---|---|---|---|")
    results = [
        compare(
            *(plain, guessing, engine.manifest.tokens.vocab_size, int(batch_size), kind),
            arguments.trials,
        )
        for kind in kinds
        for batch_size in arguments.batch_sizes.split(",")
    ]
    return 1 if arguments.exact and not all(results) else 0


if __name__ == "__main__":
    sys.exit(main())
