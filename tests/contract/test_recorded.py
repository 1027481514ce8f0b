"""The record is complete in itself, and the double uses all of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.contract.double import public, record, shapes
from tests.contract.double.record import entries, entry, names_of_records, recorded

DOUBLE = Path(record.__file__).parent
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in DOUBLE.glob("*.py")}
STANDINGS = {"exact", "near 1.2, unverified", "inferred"}
CLASSES = dict(entries("classes"))
SURFACES = dict(entries("surfaces"))
FIELDS = [(name, field) for name, made in CLASSES.items() for field in made["fields"]]
METHODS = [
    (name, method)
    for name, made in {**CLASSES, **SURFACES}.items()
    for method in made.get("methods", {})
]


@pytest.mark.parametrize("name", names_of_records())
def test_record_says_where_it_comes_from(name: str) -> None:
    provenance = recorded(name)["provenance"]
    assert provenance["project"] == "NVIDIA/TensorRT-LLM"
    assert provenance["release"] == "1.2.1"
    assert provenance["standing"] in STANDINGS
    assert provenance["source"]


@pytest.mark.parametrize("name", names_of_records())
def test_exceptions_from_a_standing_name_what_is_recorded(name: str) -> None:
    content = recorded(name)
    others = str({key: value for key, value in content.items() if key != "provenance"})
    named = [*content["provenance"].get("near", []), *content["provenance"].get("exact", [])]
    assert [item for item in named if not re.search(rf"\b{item}\b", others)] == []


@pytest.mark.parametrize("section", ["classes", "surfaces", "enums", "errors"])
def test_no_name_is_recorded_twice(section: str) -> None:
    names = [name for name, _ in entries(section)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=lambda value: str(value))
def test_field_has_a_type_and_a_default_of_it(name: str, field: str) -> None:
    spec = CLASSES[name]["fields"][field]
    kind = shapes._type(spec["type"])
    assert sum(key in spec for key in ("default", "new", "required")) == 1
    # A default of None is recorded for one field whose type does not say so.
    if "default" in spec and spec["type"] != "SpeculativeConfig":
        TypeAdapter(kind).validate_python(shapes._default(spec))


@pytest.mark.parametrize(("name", "method"), METHODS, ids=lambda value: str(value))
def test_parameters_have_types(name: str, method: str) -> None:
    made = {**CLASSES, **SURFACES}[name]
    for spec in made["methods"][method]["parameters"].values():
        assert shapes._type(spec["type"])
        assert ("default" in spec) != ("required" in spec)


@pytest.mark.parametrize("section", ["classes", "surfaces", "enums", "errors"])
def test_double_has_every_recorded_name(section: str) -> None:
    assert [name for name, _ in entries(section) if not hasattr(public, name)] == []


def test_every_message_is_used_and_every_used_one_is_recorded() -> None:
    used = {
        name
        for text in SOURCES.values()
        for name in re.findall(r'(?:message|_plan_error)\(\s*"(\w+)"', text)
    }
    indirect = {"n_above_beam_width", "n_above_batch_size"}  # chosen by a condition
    assert used | indirect == set(recorded("messages")) - {"provenance"}


def test_every_assumption_is_used_and_gives_its_reason() -> None:
    used = set(re.findall(r'assumed\("(\w+)"\)', "".join(SOURCES.values())))
    assumptions = recorded("assumptions")["assumptions"]
    assert used == set(assumptions)
    assert all(isinstance(item["value"], bool) and item["why"] for item in assumptions.values())


def test_validators_of_the_recorded_order_exist() -> None:
    order = recorded("llm_args")["validator_order"]
    assert order[0] == "init_build_config" and len(order) == 8
    assert order.index("validate_model_format_misc") > order.index(
        "validate_build_config_with_runtime_params"
    )
    assert all(callable(getattr(public.TrtLlmArgs, name)) for name in order)


def test_quantisations_have_their_order() -> None:
    names = entry("enums", "QuantAlgo")["names"]
    assert len(names) == len(set(names)) == 25
    assert names[:3] == ["W8A16", "W4A16", "W4A16_AWQ"]
    assert names[13:19] == [
        "FP8",
        "FP8_PER_CHANNEL_PER_TOKEN",
        "FP8_BLOCK_SCALES",
        "INT8",
        "MIXED_PRECISION",
        "NVFP4",
    ]
    assert names[-1] == "NO_QUANT"


def test_flags_are_powers_of_two() -> None:
    values: list[Any] = [member.value for member in public.SpeculativeDecodingMode]
    assert values == [1 << place for place in range(10)]


@pytest.mark.parametrize(
    ("name", "number"),
    [("TrtLlmArgs", 64), ("BuildConfig", 30), ("PluginConfig", 41), ("SamplingParams", 51)],
)
def test_class_has_as_many_fields_as_were_read(name: str, number: int) -> None:
    assert len(CLASSES[name]["fields"]) == number


def test_architectures_are_read_inferred_or_absent_but_not_two_of_these() -> None:
    models = recorded("models")
    names = [*models["read"], *models["inferred"], *models["absent"]]
    assert len(names) == len(set(names))
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"} <= set(models["read"])


def test_statistics_have_the_keys_of_the_executor() -> None:
    statistics = recorded("statistics")
    assert {"kvCacheStats", "inflightBatchingStats"} <= set(statistics["iteration"])
    assert "usedNumBlocks" in statistics["kvCacheStats"]
