"""Lengths, arrivals and prompts: drawn from the seed alone, and what was asked for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from random import Random
from statistics import fmean, median

import pytest

from deepinfer.bench.load import arrivals
from deepinfer.bench.prompts import (
    NUM_RANDOM_ITEMS,
    Lengths,
    PromptMaker,
    PromptPlan,
    Sample,
    parse_lengths,
    parse_list,
    read_dataset,
    read_words,
)
from deepinfer.errors import ConfigError

FIXED = parse_lengths("64")


def draws(text: str, count: int = 4000) -> list[int]:
    rng = Random(1)
    return [parse_lengths(text).draw(rng) for _ in range(count)]


def test_fixed_length_is_that_length() -> None:
    assert set(draws("128", 10)) == {128}


def test_uniform_lengths_fill_their_range_evenly() -> None:
    found = draws("uniform:10:20")
    assert set(found) == set(range(10, 21))
    # Of 4,000 draws the mean lies within 0.2 of 15 but for one seed in 10,000.
    assert fmean(found) == pytest.approx(15, abs=0.2)


def test_lognormal_lengths_have_their_median_and_their_cap() -> None:
    found = draws("lognormal:100:0.5:300")
    assert median(found) == pytest.approx(100, rel=0.05)
    assert (min(found) >= 1, max(found)) == (True, 300)


@pytest.mark.parametrize("text", ["128", "uniform:1:9", "lognormal:100:0.5:300"])
def test_lengths_are_written_as_they_are_read(text: str) -> None:
    assert str(parse_lengths(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "0", "-5", "many", "uniform:9:1", "uniform:5", "lognormal:0:1", "lognormal:9:-1", "1e9"],
)
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_lengths(text)


def test_list_of_numbers() -> None:
    assert parse_list("1,4,16") == (1, 4, 16)
    for text in ("", "0", "1,x", "1.5"):
        with pytest.raises(ConfigError):
            parse_list(text)


def first(kind: str, count: int, seed: int = 1, phase: float = 0.0) -> list[float]:
    return list(itertools.islice(arrivals(kind, 4.0, Random(seed), phase=phase), count))  # type: ignore[arg-type]


def test_fixed_arrivals_are_evenly_spaced() -> None:
    assert first("fixed", 4) == [0.0, 0.25, 0.5, 0.75]


def test_processes_that_share_a_rate_take_turns() -> None:
    assert first("fixed", 2, phase=0.5) == [0.125, 0.375]


def test_poisson_arrivals_are_of_their_rate_and_of_their_seed() -> None:
    found = first("poisson", 4000)
    gaps = [b - a for a, b in itertools.pairwise([0.0, *found])]
    # Standard error 0.004: for other seeds this fails once in 10,000. A Poisson process's gaps
    # deviate as much as they are long.
    assert fmean(gaps) == pytest.approx(0.25, abs=0.016)
    assert fmean(gap * gap for gap in gaps) == pytest.approx(2 * 0.25**2, rel=0.15)
    assert found == first("poisson", 4000) != first("poisson", 4000, seed=2)


def maker(**fields: object) -> PromptMaker:
    plan: dict[str, object] = {"input_lengths": FIXED, "output_lengths": FIXED}
    return PromptMaker(PromptPlan(**(plan | fields)))  # type: ignore[arg-type]


def words(maker: PromptMaker, index: int) -> list[str]:
    content = maker.make(index).content
    assert isinstance(content, str)
    return content.split()


def test_prompt_is_a_matter_of_seed_and_index() -> None:
    assert maker().make(3) == maker().make(3)
    assert maker().make(3) != maker().make(4)
    assert maker().make(3) != maker(seed=1).make(3)


def test_runs_of_a_sweep_do_not_ask_the_same() -> None:
    assert maker().make(3) != maker(run=1).make(3)


def test_no_two_prompts_begin_alike() -> None:
    made = maker()
    heads = {tuple(words(made, index)[:NUM_RANDOM_ITEMS]) for index in range(-10, 500)}
    assert len(heads) == 510


@pytest.mark.parametrize("tokens_per_word", [1.0, 1.6, 2.5])
def test_length_is_met_by_tokens_a_word(tokens_per_word: float) -> None:
    made = maker(tokens_per_word=tokens_per_word)
    assert len(words(made, 0)) == round(64 / tokens_per_word)


def test_prompt_may_be_longer_than_the_corpus() -> None:
    count = 3 * len(read_words())
    made = maker(input_lengths=Lengths("fixed", count, count), tokens_per_word=1.0)
    assert len(words(made, 0)) == count


def test_ids_are_of_exact_number_and_of_the_corpus() -> None:
    content = maker(token_ids=(7, 8, 9)).make(0).content
    assert isinstance(content, tuple)
    assert len(content) == 64 and set(content) <= {7, 8, 9}


def test_prompts_share_as_many_prefixes_as_were_asked_for() -> None:
    made = maker(prefix_tokens=100, num_prefixes=3, tokens_per_word=1.0)
    prompts = [words(made, index) for index in range(60)]
    assert {len(prompt) for prompt in prompts} == {164}
    # That one of three is never drawn in 60 has a chance of 3 in 100 billion.
    assert len({tuple(prompt[:100]) for prompt in prompts}) == 3
    assert len({tuple(prompt[100:]) for prompt in prompts}) == 60


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def conversation(*values: str) -> dict[str, object]:
    speakers = itertools.cycle(["human", "gpt"])
    return {
        "conversations": [
            {"from": speaker, "value": value}
            for speaker, value in zip(speakers, values, strict=False)
        ]
    }


def test_dataset_of_conversations_gives_first_question_and_length_of_its_answer(
    tmp_path: Path,
) -> None:
    rows = [conversation("Why?", "For two reasons"), conversation("How?", "So", "Thanks"), {}]
    path = write(tmp_path / "a.jsonl", *rows, conversation(""), 5)
    assert read_dataset(path) == [Sample("Why?", answer_words=3), Sample("How?", answer_words=1)]


def test_dataset_may_be_one_array_as_sharegpt_is_given_out(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([conversation("Why?", "So")]))
    assert read_dataset(path) == [Sample("Why?", answer_words=1)]


def test_dataset_of_prompts_may_say_the_length_itself(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "output_tokens": 5}, {"prompt": "b", "max_tokens": 6}, {"prompt": "c"}]
    assert read_dataset(write(tmp_path / "a.jsonl", *rows)) == [
        Sample("a", output_tokens=5),
        Sample("b", output_tokens=6),
        Sample("c"),
    ]


@pytest.mark.parametrize("content", ["", "{}", "not json", "[", '{"prompt": ""}'])
def test_file_without_prompts_is_refused_with_the_form(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_dataset(path)
    assert caught.value.hint and "conversations" in caught.value.hint


def test_missing_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_dataset(tmp_path / "none.jsonl")


def test_prompts_of_a_dataset_all_come_and_have_their_own_lengths(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "output_tokens": i + 1} for i in range(9)]
    path = str(write(tmp_path / "a.jsonl", *rows))
    made = maker(dataset=path, input_lengths=None, output_lengths=None)
    prompts = [made.make(index) for index in range(9)]
    assert {(p.content, p.max_tokens) for p in prompts} == {
        (f"question {i}", i + 1) for i in range(9)
    }
    fixed = maker(dataset=path, input_lengths=None)
    assert {fixed.make(index).max_tokens for index in range(9)} == {64}
