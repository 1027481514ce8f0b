"""The comparison of an installed TensorRT-LLM with the record, on the double and its variations."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.installing import installed_double, make_double_root
from tools import trtllm_introspect
from tools.trtllm_introspect import choices_of_text, describe_default, read_record

RECORD = read_record(trtllm_introspect.RECORDED)
VERSIONS = trtllm_introspect.expected_api(RECORD)["versions"]


@pytest.fixture(scope="module")
def double_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_double_root(tmp_path_factory.mktemp("double"))


@pytest.fixture
def container(
    double_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[pytest.MonkeyPatch]:
    """The double, among the versions of its container; what the test changes is put back."""
    monkeypatch.setattr(trtllm_introspect, "observe_versions", lambda packages: dict(VERSIONS))
    with installed_double(double_root), monkeypatch.context() as change:
        importlib.import_module("tensorrt_llm")
        capsys.readouterr()  # the library's greeting
        yield change


def differences(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that the tool prints; its exit code says whether there are any."""
    exit_code = trtllm_introspect.main(list(arguments))
    lines = capsys.readouterr().out.splitlines()
    assert exit_code == (1 if lines else 0)
    return lines


def replace_class(change: pytest.MonkeyPatch, name: str, made: Any) -> None:
    section = "classes" if name in RECORD["classes"] else "surfaces"
    for home in RECORD[section][name]["homes"]:
        change.setattr(f"{home}.{name}", made)


@pytest.mark.usefixtures("container")
def test_double_is_as_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    assert differences(capsys) == []


def test_changed_default_is_one_line(
    container: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorrt_llm.builder import BuildConfig

    class Changed(BuildConfig):  # type: ignore[misc, valid-type]
        max_num_tokens: int = 4096

    replace_class(container, "BuildConfig", Changed)
    assert differences(capsys) == [
        "BuildConfig.fields.max_num_tokens.default: recorded 8192, found 4096"
    ]


def test_renamed_parameter_is_two_lines(
    container: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorrt_llm._tensorrt_engine import LLM

    method = LLM.generate_async
    parameters = [
        one.replace(name="stream") if one.name == "streaming" else one
        for one in inspect.signature(method).parameters.values()
    ]
    container.setattr(method, "__signature__", inspect.Signature(parameters))
    assert differences(capsys) == [
        "LLM.methods.generate_async.parameters.streaming: recorded, not found",
        "LLM.methods.generate_async.parameters.stream: found, not recorded",
    ]


def test_parameter_that_must_not_be_there_is_one_line(
    container: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorrt_llm._tensorrt_engine import LLM

    method = LLM.generate_async
    signature = inspect.signature(method)
    priority = inspect.Parameter("priority", inspect.Parameter.KEYWORD_ONLY, default=0.5)
    changed = signature.replace(parameters=[*signature.parameters.values(), priority])
    container.setattr(method, "__signature__", changed)
    (line,) = differences(capsys)
    assert line.startswith("LLM.methods.generate_async.parameters.priority: recorded 'missing'")


def test_missing_model_is_one_line(
    container: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorrt_llm.models import MODEL_MAP

    container.delitem(MODEL_MAP, "Qwen3ForCausalLM")
    assert differences(capsys) == ["MODEL_MAP.Qwen3ForCausalLM: recorded, not found"]


def test_model_that_nobody_recorded_is_one_line(
    container: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorrt_llm.models import MODEL_MAP

    container.setitem(MODEL_MAP, "Qwen9ForCausalLM", object)
    assert differences(capsys) == ["MODEL_MAP.Qwen9ForCausalLM: found, not recorded"]


def test_missing_class_is_one_line(
    container: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    container.delattr("tensorrt_llm.plugin.PluginConfig")
    assert differences(capsys) == ["PluginConfig: recorded, not found in tensorrt_llm.plugin"]


def test_class_that_moved_is_one_line(
    container: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    container.delattr("tensorrt_llm.llmapi.BuildConfig")
    assert differences(capsys) == [
        "BuildConfig.homes.tensorrt_llm.llmapi: recorded 'there', found 'missing'"
    ]


def test_model_that_became_lenient_is_one_line(
    container: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorrt_llm.llmapi.llm_args import KvCacheConfig

    class Lenient(KvCacheConfig, extra="ignore"):  # type: ignore[call-arg, misc, valid-type]
        pass

    replace_class(container, "KvCacheConfig", Lenient)
    assert differences(capsys) == ["KvCacheConfig.extra: recorded 'forbid', found 'ignore'"]


def test_field_of_a_later_revision_is_no_difference(
    container: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorrt_llm.llmapi.llm_args import KvCacheConfig

    class Later(KvCacheConfig):  # type: ignore[misc, valid-type]
        use_kv_cache_manager_v2: bool = False

    replace_class(container, "KvCacheConfig", Later)
    assert differences(capsys) == []


VERSION_CASES = {
    "the same": ("torch", "2.9.1", True),
    "with a local part": ("torch", "2.9.1+cu130", True),
    "of a series": ("tensorrt", "10.14.1.48", True),
    "of another series": ("tensorrt", "10.15.1.2", False),
    "that only begins alike": ("cuda", "130", False),
    "of an alpha": ("torch", "2.9.1a0", False),
    "absent": ("triton", "missing", False),
}


@pytest.mark.parametrize(
    ("name", "version", "is_same"), VERSION_CASES.values(), ids=VERSION_CASES.keys()
)
def test_version(
    container: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    version: str,
    is_same: bool,
) -> None:
    seen = {**VERSIONS, name: version}
    container.setattr(trtllm_introspect, "observe_versions", lambda packages: seen)
    line = f"versions.{name}: recorded {VERSIONS[name]}, found {version}"
    assert differences(capsys) == ([] if is_same else [line])


@pytest.mark.usefixtures("container")
def test_another_record_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in trtllm_introspect.RECORDED.glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem == "quantization":
            content["enums"]["QuantAlgo"]["names"].append("FP3")
        (tmp_path / path.name).write_text(yaml.safe_dump(content, sort_keys=False))
    assert differences(capsys, "--recorded", str(tmp_path)) == [
        "QuantAlgo.members.FP3: recorded, not found"
    ]


@pytest.mark.usefixtures("container")
def test_dump_has_signatures_schemas_models_and_versions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "api.json"
    differences(capsys, "--dump", str(file))
    dumped = json.loads(file.read_text())
    assert dumped["LLM"]["methods"]["save"]["parameters"] == {"engine_dir": {"required": True}}
    assert set(dumped["schemas"]) == {"TrtLlmArgs", "BuildConfig", "PluginConfig"}
    assert "max_num_tokens" in dumped["schemas"]["BuildConfig"]["properties"]
    assert "LlamaForCausalLM" in dumped["MODEL_MAP"]
    assert dumped["versions"]["tensorrt_llm"] == "1.2.1"


@pytest.mark.usefixtures("container")
def test_greeting_of_the_library_is_no_difference(
    double_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with installed_double(double_root):
        assert differences(capsys) == []


def test_without_the_library_the_container_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert trtllm_introspect.main([]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: TensorRT-LLM is not installed")
    assert "docs/gpu-validation.md" in hint
    assert (trtllm_introspect.RECORDED.parents[2] / "docs" / "gpu-validation.md").exists()


@pytest.mark.parametrize(
    ("annotation", "choices"),
    [
        ("Optional[Literal['xgrammar', 'llguidance']]", ["llguidance", "xgrammar"]),
        ("Union[str, None]", []),
        ("typing.Literal['auto']", ["auto"]),
    ],
)
def test_choices_of_a_written_type(annotation: str, choices: list[str]) -> None:
    assert choices_of_text(annotation) == choices


def test_default_that_is_an_object_is_named_by_its_class() -> None:
    assert describe_default(Path("x")) == {"new": type(Path("x")).__name__}
    assert describe_default(0.9) == {"default": 0.9}
