"""Which `max_seq_len` an engine can be served with, and what is said of one that it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepinfer.errors import EngineError
from deepinfer.manifest import EngineFolder, EngineLimits
from deepinfer.serving_limits import with_max_seq_len
from tests.backends.tensorrt import make_tensorrt_engine
from tests.engines import make_simulated_engine

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
}


def make_cpu_engine(folder: Path, config: str | None = json.dumps(CONFIG)) -> EngineFolder:
    """An engine that was built for 512 tokens, of a model with the positions that `config` says."""
    engine = make_simulated_engine(folder, max_seq_len=512)
    if config is not None:
        (engine.tokenizer_dir / "config.json").write_text(config, encoding="utf-8")
    return engine


def with_max_input_len(engine: EngineFolder, max_input_len: int) -> EngineFolder:
    limits = engine.manifest.limits.model_copy(update={"max_input_len": max_input_len})
    manifest = engine.manifest.model_copy(update={"limits": limits})
    return engine.model_copy(update={"manifest": manifest})


def lengths(limits: EngineLimits) -> tuple[int, int]:
    return limits.max_seq_len, limits.max_input_len


def refuse(engine: EngineFolder, max_seq_len: int) -> EngineError:
    with pytest.raises(EngineError) as refused:
        with_max_seq_len(engine, max_seq_len)
    assert "\n" not in refused.value.message
    return refused.value


@pytest.mark.parametrize("max_seq_len", [None, 512])
def test_engine_is_served_as_it_was_built_unless_it_is_asked_otherwise(
    tmp_path: Path, max_seq_len: int | None
) -> None:
    engine = make_cpu_engine(tmp_path)
    assert with_max_seq_len(engine, max_seq_len) == engine


@pytest.mark.parametrize(
    ("built_input_len", "max_seq_len", "expected"),
    [
        pytest.param(511, 100, (100, 99), id="lower"),
        pytest.param(511, 2, (2, 1), id="lowest"),
        pytest.param(511, 2048, (2048, 2047), id="all-positions"),
        pytest.param(200, 300, (300, 200), id="prompts-that-are-short-already"),
        pytest.param(200, 100, (100, 99), id="prompts-leave-room-for-an-answer"),
        pytest.param(200, 2048, (2048, 200), id="wished-input-len-is-not-raised"),
    ],
)
def test_longest_prompt_follows_the_longest_sequence(
    tmp_path: Path, built_input_len: int, max_seq_len: int, expected: tuple[int, int]
) -> None:
    engine = with_max_input_len(make_cpu_engine(tmp_path), built_input_len)
    served = with_max_seq_len(engine, max_seq_len).manifest.limits
    assert lengths(served) == expected
    kept = {"max_batch_size", "max_num_tokens", "max_beam_width"}
    assert served.model_dump(include=kept) == engine.manifest.limits.model_dump(include=kept)


def test_more_than_the_positions_of_the_model_is_refused(tmp_path: Path) -> None:
    error = refuse(make_cpu_engine(tmp_path), 2049)
    assert "2,048 positions" in error.message and "`engine.max_seq_len` is 2,049" in error.message
    assert "`--max-seq-len 2048`" in str(error.hint)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 1024},
        {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 1024}},
    ],
    ids=["old-keys", "new-keys"],
)
def test_positions_end_where_the_rope_changes(tmp_path: Path, rope: dict[str, Any]) -> None:
    engine = make_cpu_engine(tmp_path, json.dumps(CONFIG | rope))
    assert lengths(with_max_seq_len(engine, 1024).manifest.limits) == (1024, 1023)
    error = refuse(engine, 1025)
    assert "1,024 positions" in error.message and "RoPE" in error.message
    assert "`--max-seq-len 1024`" in str(error.hint)


def test_positions_of_a_multimodal_model_are_those_of_its_text(tmp_path: Path) -> None:
    config = {"architectures": CONFIG["architectures"], "text_config": CONFIG}
    engine = make_cpu_engine(tmp_path, json.dumps(config))
    assert with_max_seq_len(engine, 2048).manifest.limits.max_seq_len == 2048
    assert "2,048 positions" in refuse(engine, 2049).message


@pytest.mark.parametrize("config", [None, "{", "[]", "{}"], ids=["none", "cut", "list", "empty"])
def test_raise_needs_a_config_json_and_a_lower_limit_does_not(
    tmp_path: Path, config: str | None
) -> None:
    engine = make_cpu_engine(tmp_path, config)
    error = refuse(engine, 1024)
    assert "tokenizer/config.json" in error.message
    assert "`engine.max_seq_len` is 1,024" in error.message
    assert "`--max-seq-len 512`" in str(error.hint)
    assert "deepinfer build --model test/simulated --max-seq-len 1024" in str(error.hint)
    assert with_max_seq_len(engine, 100).manifest.limits.max_seq_len == 100


def test_limit_of_a_gpu_engine_is_compiled_in(tmp_path: Path) -> None:
    engine = make_tensorrt_engine(tmp_path)
    (engine.tokenizer_dir / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    assert lengths(with_max_seq_len(engine, 100).manifest.limits) == (100, 99)
    error = refuse(engine, 513)
    assert "`llama-8b.fp8.sm120` was compiled for" in error.message
    assert "512 tokens" in error.message and "`engine.max_seq_len` is 513" in error.message
    rebuild = "deepinfer build --model meta-llama/Llama-3.1-8B-Instruct --max-seq-len 513"
    assert rebuild in str(error.hint)
