"""What a grammar costs in each step, in which every other request waits."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

import deepinfer
from deepinfer.backends import openvino_trial
from deepinfer.text import ebnf
from deepinfer.text.json_grammar import make_grammar
from deepinfer.text.regex_grammar import make_regex_grammar
from tests.text.grammar_walk import Grammar

LENGTHS = [(0, 1), (0, 31), (0, 32), (0, 33), (0, 64), (0, 65), (5, 5), (32, 32), (33, 100)]
NUM_TOKENS = 24
# Least ratio of the cost of a repeated rule for one character; ratios of 2 to 7 were seen.
COST = 1.5


@pytest.mark.parametrize(("least", "most"), LENGTHS)
def test_counted_string_has_as_many_characters_as_the_schema_allows(least: int, most: int) -> None:
    grammar = Grammar(make_grammar({"type": "string", "minLength": least, "maxLength": most}))
    for length in range(most + 3):
        for text in ("a" * length, ("\\n" * length), ("é\\u00e9" * length)[: length * 7]):
            num_chars = len(json.loads(f'"{text}"'))
            assert grammar.has(f'"{text}"') == (least <= num_chars <= most)


@pytest.mark.parametrize("least", [1, 31, 32, 33, 70])
def test_string_with_a_shortest_length_only_may_be_of_any_other(least: int) -> None:
    grammar = Grammar(make_grammar({"type": "string", "minLength": least}))
    for length in (least - 1, least, least + 1, 200):
        assert grammar.has(json.dumps("a" * length)) == (length >= least)


@pytest.mark.parametrize("pattern", ['^[a-f"\\n]{40,90}$', "^.{0,70}$"])
def test_long_class_of_a_pattern_is_counted_with_its_escapes(pattern: str) -> None:
    grammar, rng = Grammar(make_grammar({"pattern": pattern})), random.Random(1)
    for length in (0, 39, 40, 63, 64, 70, 71, 90, 91):
        text = "".join(rng.choice('abf"') for _ in range(length))
        assert grammar.has(json.dumps(text)) == bool(re.search(pattern, text))


class Pipeline:
    """The library over a tokenizer, with a model of next to no size."""

    def __init__(self, payload_dir: Path, vocab_size: int) -> None:
        self._pipeline: Any = openvino_trial._Pipeline(payload_dir, vocab_size)

    def step_cpu_s(self, grammar: str) -> float:
        """Processor time of a step, without compiling; the least of some runs."""
        times = []
        for seed in range(5):
            config = self._pipeline._genai.GenerationConfig()
            config.max_new_tokens, config.do_sample, config.rng_seed = NUM_TOKENS, True, seed
            config.structured_output_config = self._pipeline._genai.StructuredOutputConfig(
                grammar=grammar
            )
            started_at = time.process_time()
            result = self._pipeline._pipeline.generate(self._pipeline._prompt, config)
            if seed:  # the first one has compiled it
                num_tokens = max(len(result.tokens[0]), 1)
                times.append((time.process_time() - started_at) / num_tokens)
        return min(times)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """With the sample model's tokenizer: the cost is by the size of the vocabulary."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import PreTrainedTokenizerFast

    path = Path(deepinfer.__file__).parent / "sample" / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<|im_end|>")
    folder = tmp_path_factory.mktemp("payload")
    converted = convert_tokenizer(tokenizer, with_detokenizer=True)
    for model, name in zip(converted, ("tokenizer", "detokenizer"), strict=True):
        openvino.save_model(model, folder / f"openvino_{name}.xml")
    return Pipeline(folder, len(tokenizer))


@pytest.mark.parametrize("most", [300, 10_000])
def test_step_in_a_counted_string_does_not_try_every_token(pipeline: Pipeline, most: int) -> None:
    counted = make_grammar({"type": "string", "minLength": 100, "maxLength": most})
    rules = f'root ::= "\\"" {ebnf.repeat("char", 100, most)} "\\""{ebnf.JSON_RULES}'
    assert pipeline.step_cpu_s(counted) * COST < pipeline.step_cpu_s(rules)


def test_step_in_a_long_class_of_a_regular_expression_costs_as_little(pipeline: Pipeline) -> None:
    counted = make_regex_grammar(".{100,1000}")
    rules = f"root ::= {ebnf.repeat('any', 100, 1_000)}\nany ::= [{ebnf.PLAIN_CHARS}]\n"
    assert pipeline.step_cpu_s(counted) * COST < pipeline.step_cpu_s(rules)
