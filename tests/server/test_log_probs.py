"""Log probabilities over HTTP: OpenAI's shapes, and the values of a forward pass in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from tests.building import BuildEngine
from tests.server.serving import DEADLINE_S, client_of, read_events, serving

TOLERANCE = 1e-3
PROMPT_IDS = list(range(20, 60))


@dataclass(frozen=True)
class Served:
    """A server of a tiny model with random weights, and the same weights in transformers."""

    http: httpx.Client
    sdk: openai.OpenAI
    model: Any
    tokenizer: Any

    def log_probs(self, token_ids: list[int]) -> Any:
        """Of every token after each of `token_ids`: [num_tokens, vocab_size]."""
        import torch

        with torch.inference_mode():
            logits = self.model(torch.tensor([token_ids])).logits[0]
        return torch.log_softmax(logits.float(), dim=-1)


@pytest.fixture(scope="module")
def served(build_engine: BuildEngine) -> Iterator[Served]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    built = build_engine("llama", "fp32", "--max-seq-len", "256", "--max-batch-size", "8")
    with (
        serving(built.engine.path) as server,
        client_of(server) as http,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=DEADLINE_S) as sdk,
    ):
        model = AutoModelForCausalLM.from_pretrained(built.checkpoint, dtype=torch.float32).eval()
        yield Served(http, sdk, model, AutoTokenizer.from_pretrained(built.checkpoint))


def complete(served: Served, **fields: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT_IDS, "max_tokens": 12, "temperature": 0, "ignore_eos": True} | fields
    response = served.http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def test_echoed_prompt_and_answer_are_scored_as_by_a_forward_pass(served: Served) -> None:
    choice = complete(served, logprobs=5, echo=True)
    scores = choice["logprobs"]
    count = len(PROMPT_IDS) + 12
    assert [len(scores[name]) for name in scores] == [count] * 4
    assert scores["token_logprobs"][0] is None and scores["top_logprobs"][0] is None
    greedy = list(PROMPT_IDS)
    for _ in range(12):
        greedy.append(int(served.log_probs(greedy)[-1].argmax()))
    rows = served.log_probs(greedy)
    for place in range(1, count):
        row = rows[place - 1]
        expected = float(row[greedy[place]])
        assert scores["token_logprobs"][place] == pytest.approx(expected, abs=TOLERANCE)
        best = sorted(row.topk(5).values.tolist(), reverse=True)
        found = sorted(scores["top_logprobs"][place].values(), reverse=True)
        # Tokens that read alike share an entry, so there may be fewer.
        assert found[0] == pytest.approx(best[0], abs=TOLERANCE)
        assert 1 <= len(found) <= 6


def test_offsets_and_tokens_spell_the_text(served: Served) -> None:
    words = served.tokenizer("The river ran past the mill", add_special_tokens=False)["input_ids"]
    choice = complete(served, prompt=words, logprobs=0, echo=True, max_tokens=1)
    scores, text = choice["logprobs"], choice["text"]
    assert text.startswith("The river ran past the mill")
    for token, offset in list(zip(scores["tokens"], scores["text_offset"], strict=True))[:-1]:
        assert text[offset : offset + len(token)] == token


def test_stream_has_the_same_scores(served: Served) -> None:
    fields = {"logprobs": 2, "echo": True, "max_tokens": 12}
    whole = complete(served, **fields)
    body = {"prompt": PROMPT_IDS, "temperature": 0, "ignore_eos": True, "stream": True} | fields
    joined: dict[str, list[Any]] = {name: [] for name in whole["logprobs"]}
    text = ""
    with served.http.stream("POST", "/v1/completions", json=body) as response:
        for event in read_events(response):
            if event == "[DONE]":
                break
            choice = json.loads(event)["choices"][0]
            text += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                joined[name] += values
    assert text == whole["text"]
    assert joined == whole["logprobs"]


def test_chat_has_bytes_and_alternatives(served: Served) -> None:
    answer = served.sdk.chat.completions.create(
        model=served.sdk.models.list().data[0].id,
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=4,
        extra_body={"ignore_eos": True},
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert len(choice.logprobs.content) == 8
    for token in choice.logprobs.content:
        assert token.bytes is not None
        assert bytes(token.bytes).decode("utf-8", errors="replace") == token.token
        assert len(token.top_logprobs) == 4
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=TOLERANCE)


def test_tokens_of_a_stop_string_are_left_out(served: Served) -> None:
    free = complete(served, logprobs=0, max_tokens=12)
    text, tokens = free["text"], free["logprobs"]["tokens"]
    stop = text[len(text) // 2 :][:2]
    cut = complete(served, logprobs=0, max_tokens=12, stop=stop)
    assert cut["text"] == text[: text.index(stop)]
    offsets = cut["logprobs"]["text_offset"]
    assert cut["logprobs"]["tokens"] == tokens[: len(offsets)]
    assert all(offset < len(cut["text"]) for offset in offsets)


def test_chosen_values_alone_need_no_second_model(served: Served) -> None:
    cheap = complete(served, logprobs=0)["logprobs"]
    scored = complete(served, logprobs=1)["logprobs"]
    assert cheap["tokens"] == scored["tokens"]
    assert cheap["token_logprobs"] == pytest.approx(scored["token_logprobs"], abs=TOLERANCE)


def test_many_scored_at_once_and_cancelled_ones_leave_nothing(served: Served) -> None:
    alone = complete(served, logprobs=3, max_tokens=60)
    body = {"prompt": [PROMPT_IDS] * 6, "max_tokens": 60, "temperature": 0, "logprobs": 3}
    body |= {"ignore_eos": True}
    streaming = body | {"stream": True}
    with served.http.stream("POST", "/v1/completions", json=streaming) as response:
        next(read_events(response))
    answer = served.http.post("/v1/completions", json=body).json()
    assert [choice["text"] for choice in answer["choices"]] == [alone["text"]] * 6


def test_echo_without_log_probabilities_is_the_text_alone(served: Served) -> None:
    choice = complete(served, echo=True, max_tokens=3)
    without = complete(served, max_tokens=3)
    prompt = served.tokenizer.decode(PROMPT_IDS, skip_special_tokens=True)
    assert choice["text"].endswith(without["text"]) and choice["logprobs"] is None
    assert len(choice["text"]) > len(without["text"])
    assert choice["text"][:4] == prompt[:4]


def test_engine_folder_is_left_as_it_was(served: Served, build_engine: BuildEngine) -> None:
    built = build_engine("llama", "fp32", "--max-seq-len", "256", "--max-batch-size", "8")
    payload = {path.name for path in built.engine.payload_dir.iterdir()}
    assert payload == {
        name.split("/")[1] for name in built.engine.manifest.files if "payload" in name
    }


def test_prompt_alone_is_scored_without_an_answer(served: Served) -> None:
    whole = complete(served, logprobs=2, echo=True)
    scored = complete(served, logprobs=2, echo=True, max_tokens=0)
    count = len(PROMPT_IDS)
    assert whole["text"].startswith(scored["text"])
    assert scored["finish_reason"] == "length"
    assert {name: len(values) for name, values in scored["logprobs"].items()} == dict.fromkeys(
        scored["logprobs"], count
    )
    assert scored["logprobs"]["token_logprobs"][1:] == pytest.approx(
        whole["logprobs"]["token_logprobs"][1:count], abs=TOLERANCE
    )
    body = {"prompt": PROMPT_IDS, "max_tokens": 0, "echo": True}
    usage = served.http.post("/v1/completions", json=body).json()["usage"]
    assert usage == {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}


def test_best_of_returns_the_likeliest_answers(served: Served) -> None:
    sampled = {"prompt": [PROMPT_IDS, PROMPT_IDS[:9]], "temperature": 1.5, "seed": 5, "n": 4}
    body = {"max_tokens": 8, "ignore_eos": True, "logprobs": 0} | sampled
    every = served.http.post("/v1/completions", json=body).json()
    best = served.http.post("/v1/completions", json={**body, "n": 2, "best_of": 4}).json()
    for prompt in range(2):
        candidates = every["choices"][4 * prompt : 4 * prompt + 4]
        candidates.sort(key=lambda choice: -sum(choice["logprobs"]["token_logprobs"]))
        chosen = best["choices"][2 * prompt : 2 * prompt + 2]
        assert [c["text"] for c in chosen] == [c["text"] for c in candidates[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"] == every["usage"]
    silent = {key: value for key, value in body.items() if key != "logprobs"}
    plain = served.http.post("/v1/completions", json={**silent, "n": 2, "best_of": 4}).json()
    assert [c["logprobs"] for c in plain["choices"]] == [None] * 4
