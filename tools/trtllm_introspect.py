"""Compare the TensorRT-LLM that is installed with the recorded API that DeepInfer is written for.

    python tools/trtllm_introspect.py [--recorded FOLDER] [--dump FILE]

To be run inside the container, where the library is. One line on stdout for each difference; exit
code 1 when there is any, 2 without the library. `--dump` also writes what was seen as JSON: fields,
signatures, pydantic's schemas, MODEL_MAP and versions. Needs PyYAML and nothing of DeepInfer.

Record and library are brought into one shape, and the shapes are compared. Names, defaults, what
is required, the choices of a Literal, enum members and versions count. Other types do not, as one
type has many spellings; nor what only an instance has, as none is made.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import enum
import importlib
import importlib.util
import inspect
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

RECORDED = Path(__file__).parent.parent / "tests" / "contract" / "recorded"
CLASSES_WITH_SCHEMA = ("TrtLlmArgs", "BuildConfig", "PluginConfig")
MISSING = "missing"
VALUE_KEYS = ("required", "default", "new", "alias")

Shape = dict[str, Any]


def read_record(folder: Path) -> Shape:
    """All records as one: sections such as `classes` are merged, other keys stay by file."""
    merged: Shape = {"classes": {}, "surfaces": {}, "enums": {}, "errors": {}, "later_fields": {}}
    for path in sorted(folder.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section in merged.keys() & content.keys():
            merged[section].update(content[section])
        if path.stem in ("models", "versions"):
            merged[path.stem] = content
    return merged


def expected_api(record: Shape) -> Shape:
    """The record in the shape that `observe_api` gives the library."""
    classes = {**record["classes"], **record["surfaces"]}
    models = record["models"]
    versions = record["versions"]
    return {
        **{name: _expected_class(entry) for name, entry in classes.items()},
        **{name: _expected_enum(entry) for name, entry in record["enums"].items()},
        **{
            name: {"homes": _all_there(entry["homes"]), "base": entry["base"]}
            for name, entry in record["errors"].items()
        },
        "MODEL_MAP": _all_there([*models["read"], *models["inferred"]]),
        "versions": {
            **versions["packages"],
            "python": versions["python"],
            "tensorrt": versions["tensorrt_series"],
            "cuda": versions["cuda_series"],
        },
    }


def _all_there(names: list[str]) -> dict[str, str]:
    return dict.fromkeys(names, "there")


def _expected_class(entry: Shape) -> Shape:
    shape: Shape = {"homes": _all_there(entry["homes"])}
    names = ("properties", "protocols")
    shape["attributes"] = _all_there([name for key in names for name in entry.get(key, [])])
    shape["attributes"] |= dict.fromkeys(entry.get("absent", []), MISSING)
    if "kind" in entry:
        shape["kind"] = entry["kind"]
        shape["fields"] = {name: _expected_value(spec) for name, spec in entry["fields"].items()}
    if entry.get("kind") == "model":
        shape["extra"] = entry["extra"]
        shape["validate_assignment"] = entry.get("validate_assignment", False)
    if entry.get("kind") == "dataclass":
        options = entry["options"]
        shape["slots"] = options.get("slots", False)
        shape["kw_only"] = options.get("kw_only", False)
        unset = entry.get("fields_without_init", {})
        shape["fields_without_init"] = {name: _expected_value(unset[name]) for name in unset}
    methods = entry.get("methods", {})
    shape["methods"] = {name: _expected_method(methods[name]) for name in methods}
    return shape


def _expected_value(spec: Shape) -> Shape:
    shape: Shape = {key: spec[key] for key in VALUE_KEYS if key in spec}
    if choices := choices_of_text(spec["type"]):
        shape["choices"] = choices
    return shape


def _expected_method(method: Shape) -> Shape:
    absent = dict.fromkeys(method.get("absent", []), MISSING)
    parameters = {name: _expected_value(spec) for name, spec in method["parameters"].items()}
    return {"parameters": {**parameters, **absent}, "keywords": method.get("keywords")}


def _expected_enum(entry: Shape) -> Shape:
    is_lower = entry.get("lower_case_values", False)
    members: Shape = {name: name.lower() if is_lower else name for name in entry["names"]}
    if entry["kind"] == "flag":
        members = {name: 1 << position for position, name in enumerate(members)}
    return {"homes": _all_there(entry["homes"]), "members": members}


def choices_of_text(annotation: str) -> list[str]:
    """The values of every Literal in a type that is written out, sorted."""
    return sorted(
        str(constant.value)
        for node in ast.walk(ast.parse(annotation, mode="eval"))
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal")
        for constant in ast.walk(node.slice)
        if isinstance(constant, ast.Constant)
    )


def observe_api(record: Shape) -> Shape:
    """What is installed, looked up by the names in the record."""
    seen: Shape = {}
    for name, entry in {**record["classes"], **record["surfaces"]}.items():
        seen[name] = _observe(name, entry, _observed_class)
    for name, entry in record["enums"].items():
        seen[name] = _observe(name, entry, _observed_enum)
    for name, entry in record["errors"].items():
        seen[name] = _observe(name, entry, _observed_error)
    seen["MODEL_MAP"] = _all_there(list(find("tensorrt_llm.models", "MODEL_MAP") or {}))
    seen["versions"] = observe_versions(record["versions"]["packages"])
    return seen


def _observe(name: str, entry: Shape, describe: Callable[[Any, Shape], Shape]) -> Shape:
    there = {home: find(home, name) for home in entry["homes"]}
    found = next((one for one in there.values() if one is not None), None)
    homes = {home: MISSING if one is None else "there" for home, one in there.items()}
    return {"homes": homes, **({} if found is None else describe(found, entry))}


def find(module: str, name: str) -> Any:
    """An attribute of a module, or None when one of them is not there."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _observed_class(cls: Any, entry: Shape) -> Shape:
    shape: Shape = {}
    if "kind" in entry:
        shape |= _observed_fields(cls)
    names = [*entry.get("properties", []), *entry.get("protocols", []), *entry.get("absent", [])]
    known = shape.get("fields", {})
    shape["attributes"] = {
        name: "there" if hasattr(cls, name) or name in known else MISSING for name in names
    }
    shape["methods"] = {
        name: observed_method(getattr(cls, name), method.get("absent", []))
        for name, method in entry.get("methods", {}).items()
        if hasattr(cls, name)
    }
    return shape


def _observed_fields(cls: Any) -> Shape:
    if hasattr(cls, "model_fields"):
        return {
            "kind": "model",
            "extra": cls.model_config.get("extra") or "ignore",
            "validate_assignment": bool(cls.model_config.get("validate_assignment")),
            "fields": {name: _model_field(field) for name, field in cls.model_fields.items()},
        }
    if not dataclasses.is_dataclass(cls):
        return {"kind": "class", "fields": {}}
    fields = dataclasses.fields(cls)
    return {
        "kind": "dataclass",
        "slots": "__slots__" in vars(cls),
        "kw_only": all(field.kw_only for field in fields if field.init),
        "fields": {field.name: _dataclass_field(field) for field in fields if field.init},
        "fields_without_init": {
            field.name: _dataclass_field(field) for field in fields if not field.init
        },
    }


def _model_field(field: Any) -> Shape:
    if field.is_required():
        shape: Shape = {"required": True}
    else:
        shape = describe_default(field.get_default(call_default_factory=True))
    if field.alias:
        shape["alias"] = field.alias
    return shape | _choices(field.annotation)


def _dataclass_field(field: dataclasses.Field[Any]) -> Shape:
    if field.default is not dataclasses.MISSING:
        shape = describe_default(field.default)
    elif field.default_factory is not dataclasses.MISSING:
        shape = describe_default(field.default_factory())
    else:
        shape = {"required": True}
    return shape | _choices(field.type)


def observed_method(method: Any, absent: list[str]) -> Shape:
    parameters: Shape = dict.fromkeys(absent, MISSING)
    keywords = None
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            keywords = name
        elif name != "self":
            is_required = parameter.default is parameter.empty
            shape = {"required": True} if is_required else describe_default(parameter.default)
            parameters[name] = shape | _choices(parameter.annotation)
    return {"parameters": parameters, "keywords": keywords}


def describe_default(value: Any) -> Shape:
    """A default as the record writes it: an enum by its name, an object by its class."""
    if isinstance(value, enum.Enum):
        return {"default": value.name}
    if value is None or isinstance(value, str | int | float | list | dict):
        return {"default": value}
    return {"new": type(value).__name__}


def _choices(annotation: Any) -> Shape:
    is_text = isinstance(annotation, str)
    choices = choices_of_text(annotation) if is_text else sorted(set(_literals(annotation)))
    return {"choices": choices} if choices else {}


def _literals(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
        return
    for argument in get_args(annotation):
        yield from _literals(argument)


def _observed_enum(kind: Any, entry: Shape) -> Shape:
    return {"members": {member.name: member.value for member in kind}}


def _observed_error(error: Any, entry: Shape) -> Shape:
    bases = [base.__name__ for base in error.__mro__[1:]]
    return {"base": entry["base"] if entry["base"] in bases else bases[0]}


def observe_versions(packages: Mapping[str, object]) -> dict[str, str]:
    versions = {name: version_of(name) for name in [*packages, "tensorrt"]}
    cuda = getattr(find("torch", "version"), "cuda", None)
    return versions | {"python": platform.python_version(), "cuda": cuda or MISSING}


def version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return MISSING


def compare(record: Shape, seen: Shape) -> list[str]:
    """A line for each difference between the record and what was seen."""
    expected, others = expected_api(record), dict(seen)
    versions = expected.pop("versions"), others.pop("versions")
    later = record["later_fields"].items()
    doubtful = tuple(f"{name}.fields.{field}:" for name, fields in later for field in fields)
    lines = [*_differences("", expected, others), *_version_differences(*versions)]
    return [line for line in lines if not line.startswith(doubtful)]


def _differences(path: str, expected: Any, seen: Any) -> Iterator[str]:
    if not isinstance(expected, dict) or not isinstance(seen, dict):
        if expected != seen or isinstance(expected, bool) != isinstance(seen, bool):
            yield f"{path}: recorded {expected!r}, found {seen!r}"
        return
    if MISSING in (seen.get("homes") or {}).values() and len(seen) == 1:
        yield f"{path}: recorded, not found in {', '.join(seen['homes'])}"
        return
    for name in [*expected, *(name for name in seen if name not in expected)]:
        inner = f"{path}.{name}".removeprefix(".")
        if name not in seen:
            yield f"{inner}: recorded, not found"
        elif name not in expected:
            yield f"{inner}: found, not recorded"
        else:
            yield from _differences(inner, expected[name], seen[name])


def _version_differences(expected: dict[str, str], seen: dict[str, str]) -> Iterator[str]:
    """A version counts as recorded when it begins with what is recorded, a series or more."""
    for name, version in expected.items():
        if seen[name] != version and not seen[name].startswith((f"{version}.", f"{version}+")):
            yield f"versions.{name}: recorded {version}, found {seen[name]}"


def dump(seen: Shape, record: Shape) -> str:
    return json.dumps({**seen, "schemas": dict(_schemas(record))}, indent=2, default=repr)


def _schemas(record: Shape) -> Iterator[tuple[str, Any]]:
    from pydantic.errors import PydanticUserError

    for name in CLASSES_WITH_SCHEMA:
        cls = find(record["classes"][name]["homes"][0], name)
        try:
            yield name, cls and cls.model_json_schema()
        except PydanticUserError as error:  # a type that JSON has no word for
            yield name, str(error).splitlines()[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="folder of the record")
    parser.add_argument("--dump", type=Path, help="file to write what was seen to, as JSON")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("tensorrt_llm") is None:
        print("error: TensorRT-LLM is not installed here", file=sys.stderr)
        print("hint: docs/gpu-validation.md says how to run this in its container", file=sys.stderr)
        return 2
    record = read_record(options.recorded)
    # The library prints its version and more while it is imported.
    with contextlib.redirect_stdout(sys.stderr):
        seen = observe_api(record)
        if options.dump:
            options.dump.write_text(dump(seen, record) + "\n", encoding="utf-8")
    differences = compare(record, seen)
    print(*differences, sep="\n", end="\n" if differences else "")
    print(f"{len(differences)} differences from {options.recorded}", file=sys.stderr)
    return 1 if differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
