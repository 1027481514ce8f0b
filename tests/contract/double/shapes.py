"""Classes and signatures made from the record: enums, pydantic models, dataclasses, methods.

A class with a behaviour names it as `behaviour`, a base class without fields of its own.
"""

from __future__ import annotations

import collections.abc
import copy
import dataclasses
import enum
import inspect
import typing
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from tests.contract.double.record import entry

# Types of other packages, or of parts of the library that the double does without.
OPAQUE_TYPES = frozenset(
    "BuildCacheConfig CacheTransceiverConfig DisaggregatedParams KvCacheRetentionConfig "
    "LogitsProcessor LookaheadDecodingConfig PostprocParams PreTrainedTokenizerBase "
    "PromptAdapterRequest PromptInputs RequestPerfMetrics SchedulingParams SparseAttentionConfig "
    "SpeculativeConfig Tensor TokenizerBase".split()
)
Method = TypeVar("Method", bound=Callable[..., Any])

_made: dict[str, Any] = {}


def make_enum(name: str) -> Any:
    """The recorded enum: strings that are their own names, or flags."""
    record = entry("enums", name)
    if record["kind"] == "flag":
        made: Any = enum.IntFlag(name, record["names"])
    else:
        lower = record.get("lower_case_values", False)
        members = {member: member.lower() if lower else member for member in record["names"]}
        made = enum.StrEnum(name, members)
    return _finish(name, made, record)


def make_model(name: str, behaviour: type[pydantic.BaseModel] = pydantic.BaseModel) -> Any:
    """The recorded pydantic model, on top of `behaviour`."""
    record = entry("classes", name)
    config = pydantic.ConfigDict(
        extra=record["extra"],
        validate_assignment=record.get("validate_assignment", False),
        arbitrary_types_allowed=True,
    )
    base = type(name, (behaviour,), {"model_config": config, "__module__": record["homes"][0]})
    fields: dict[str, Any] = {
        field: (_type(spec["type"]), pydantic.Field(**_field_options(spec)))
        for field, spec in record["fields"].items()
    }
    return _finish(name, pydantic.create_model(name, __base__=base, **fields), record)


def make_dataclass(name: str, behaviour: type = object) -> Any:
    """The recorded dataclass, on top of `behaviour`, which has `__slots__ = ()` where it has."""
    record = entry("classes", name)
    fields = [
        (field, _type(spec["type"]), _dataclass_field(spec))
        for field, spec in record["fields"].items()
    ]
    fields += [
        (field, _type(spec["type"]), dataclasses.field(init=False, default=spec["default"]))
        for field, spec in record.get("fields_without_init", {}).items()
    ]
    made = dataclasses.make_dataclass(name, fields, bases=(behaviour,), **record["options"])
    return _finish(name, made, record)


def recorded_signature(surface: str, name: str) -> inspect.Signature:
    """The signature of a method, with `self`."""
    record = entry("surfaces", surface)["methods"][name]
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for parameter, spec in record["parameters"].items():
        default = inspect.Parameter.empty if spec.get("required") else spec["default"]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(
            inspect.Parameter(parameter, kind, default=default, annotation=_type(spec["type"]))
        )
    if "keywords" in record:
        parameters.append(inspect.Parameter(record["keywords"], inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


def recorded_method(surface: str) -> Callable[[Method], Method]:
    """Give a method the recorded signature; it is called with every parameter by its name."""

    def decorate(method: Method) -> Method:
        signature = recorded_signature(surface, method.__name__)

        @wraps(method)
        def bound_method(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return method(**bound.arguments)

        bound_method.__signature__ = signature  # type: ignore[attr-defined]
        return typing.cast(Method, bound_method)

    return decorate


def _finish(name: str, made: Any, record: dict[str, Any]) -> Any:
    made.__module__ = record["homes"][0]
    _made[name] = made
    return made


def _type(text: str) -> Any:
    """The type that a record names: of typing, made here before, or opaque and so anything."""
    known = {**vars(typing), "Path": Path, "BaseModel": pydantic.BaseModel, **_made}
    known |= {name: Any for name in OPAQUE_TYPES}
    known |= {"Sequence": collections.abc.Sequence, "Mapping": collections.abc.Mapping}
    return eval(text, {}, known)  # the text is a file of this repository


def _default(spec: dict[str, Any]) -> Any:
    value = spec["default"]
    kind = _made.get(spec["type"])
    return kind[value] if isinstance(kind, enum.EnumMeta) else value


def _field_options(spec: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "new" in spec:
        options["default_factory"] = _made[spec["new"]]
    elif not spec.get("required"):
        options["default"] = copy.deepcopy(_default(spec))
    if "alias" in spec:
        options["alias"] = spec["alias"]
    if "minimum" in spec:
        options |= {"ge": spec["minimum"], "le": spec["maximum"]}
    return options


def _dataclass_field(spec: dict[str, Any]) -> Any:
    if spec.get("required"):
        return dataclasses.field()
    value = _default(spec)
    if isinstance(value, list):
        return dataclasses.field(default_factory=lambda: list(value))
    return dataclasses.field(default=value)
