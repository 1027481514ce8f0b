"""lm-eval's own client for completions, unmodified: its figures are those of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.building import BuildEngine
from tests.server.serving import serving

TOLERANCE = 1e-3
PAIRS = [
    ("The river ran past the mill", " and the miller counted sacks"),
    ("A lamp in the window", " said that somebody was still awake"),
    ("Twelve birds", " and seven birds are nineteen birds"),
    ("東京の", "朝"),
    ("The", " The The The"),
]


@pytest.fixture(scope="module")
def served(build_engine: BuildEngine) -> Iterator[tuple[str, Path]]:
    built = build_engine("llama", "fp32", "--max-seq-len", "256", "--max-batch-size", "8")
    with serving(built.engine.path) as server:
        server.wait_ready()
        yield server.url, built.checkpoint


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_log_likelihoods_and_greedy_flags_are_those_of_transformers(
    served: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    url, checkpoint = served
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    model = LocalCompletionsAPI(
        base_url=f"{url}/v1/completions",
        model="engine",
        tokenizer=str(checkpoint),
        tokenizer_backend="huggingface",
        max_length=256,
        batch_size=2,
    )
    model.model = served_name(url)
    greedy = Reference(checkpoint)
    pairs = [*PAIRS, *greedy.make_greedy_pairs(PAIRS)]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index)
        for index, pair in enumerate(pairs)
    ]
    found = model.loglikelihood(requests, disable_tqdm=True)
    for pair, (log_likelihood, is_greedy) in zip(pairs, found, strict=True):
        expected, expected_greedy = greedy.score(*model._encode_pair(*pair))
        assert log_likelihood == pytest.approx(expected, abs=TOLERANCE), pair
        assert is_greedy == expected_greedy, pair
    assert {is_greedy for _, is_greedy in found} == {True, False}


def served_name(url: str) -> str:
    import httpx

    name: str = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    return name


class Reference:
    """The same weights in transformers, float32."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)

    def make_greedy_pairs(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Continuations that the model itself would choose, where they survive the tokenizer."""
        made = []
        for context, _ in pairs:
            ids = self._tokenizer.encode(context, add_special_tokens=False)
            for _ in range(2):
                ids.append(int(self._rows(ids)[-1].argmax()))
            text = self._tokenizer.decode(ids)
            if self._tokenizer.encode(text, add_special_tokens=False) == ids:
                made.append((context, text[len(context) :]))
        return made

    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        rows = self._rows([*context, *continuation])[len(context) - 1 : -1]
        chosen = [float(row[token]) for row, token in zip(rows, continuation, strict=True)]
        is_greedy = [int(row.argmax()) for row in rows] == continuation
        return sum(chosen), is_greedy

    def _rows(self, ids: list[int]) -> Any:
        with self._torch.inference_mode():
            logits = self._model(self._torch.tensor([ids])).logits[0]
        return self._torch.log_softmax(logits, dim=-1)  # [num_tokens, vocab_size]
