"""What every body that clients send has in common: strict types, null, unknown and refused fields.

A rule that pydantic has no word for is raised as `invalid` or `unsupported`; `errors.py` turns both
into answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from deepinfer.server import refused as refused_fields


def invalid(rule: str, at: str = "") -> PydanticCustomError:
    """A broken rule that pydantic has no word for; `at` leads on from the field to the culprit."""
    return PydanticCustomError("invalid_value", "{rule}", {"rule": rule, "at": at})


def unsupported(rule: str, at: str = "") -> PydanticCustomError:
    return PydanticCustomError("unsupported_parameter", "{rule}", {"rule": rule, "at": at})


def missing(at: str) -> PydanticCustomError:
    return PydanticCustomError("missing", "Field required", {"at": at})


Rule = Mapping[str, Any]
"""What JSON Schema has to say about several fields of an object together."""


def needs(field: str, *, idle: tuple[Any, ...] = (None,), **others: Any) -> Rule:
    """`field` may have a value beside the idle ones only where `others` have theirs."""
    together = {name: {"const": value} for name, value in others.items()}
    return {
        "anyOf": [
            {"properties": {field: {"enum": list(idle)}}},
            {"required": list(others), "properties": together},
        ]
    }


class Schema(BaseModel):
    """Unknown fields are kept aside, so that they can be named in a log, and change nothing."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)
    refused: ClassVar[refused_fields.Neutral] = {}
    without_effect: ClassVar[Mapping[str, str]] = {}
    # Of the checks between fields those that JSON Schema can say; the validators enforce them.
    rules: ClassVar[tuple[Rule, ...]] = ()

    @property
    def unknown_fields(self) -> set[str]:
        return set(self.model_extra or ()) - self.refused.keys() - self.without_effect.keys()

    @field_validator("*", mode="wrap")
    @classmethod
    def _read_null_as_default(
        cls, value: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> object:
        """A default is what the field's own validators make, and not what they take."""
        assert info.field_name is not None
        field = cls.model_fields[info.field_name]
        if value is not None or field.is_required():
            return validate(value)
        return field.get_default(call_default_factory=True, validated_data={})

    @field_validator("*", mode="before")
    @classmethod
    def _read_whole_numbers(cls, value: object, info: ValidationInfo) -> object:
        """`16.0` is an integer in JSON Schema, whatever the writer of the JSON had in mind."""
        return _as_whole(value) if info.field_name in _whole_number_fields(cls) else value

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        name = refused_fields.find_refused(self.model_extra or {}, self.refused)
        if name is not None:
            raise unsupported("is not supported by this server; leave it out", name)
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        required = schema.get("required", ())
        properties = {
            name: field if name in required else _or_null(field)
            for name, field in schema["properties"].items()
        }
        for name in properties.keys() & refused_fields.TRANSLATED:
            properties[name] = {**properties[name], refused_fields.STANDING: "translated"}
        schema["properties"] = {
            **properties,
            **{
                name: {"description": text, refused_fields.STANDING: "no effect"}
                for name, text in cls.without_effect.items()
            },
            **refused_fields.describe(cls.refused),
        }
        if cls.rules:
            schema["allOf"] = [dict(rule) for rule in cls.rules]
        return schema


@cache
def _whole_number_fields(schema: type[Schema]) -> frozenset[str]:
    fields = ((name, _leaves(field.annotation)) for name, field in schema.model_fields.items())
    return frozenset(name for name, leaves in fields if int in leaves and float not in leaves)


def _leaves(annotation: Any) -> set[Any]:
    """The types that a type is made of: str and int for `list[str | int]`."""
    parts = get_args(annotation)
    return set().union(*map(_leaves, parts)) if parts else {annotation}


def _as_whole(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    # Looked at by type first: an array of millions of token ids is not to be copied for nothing.
    if isinstance(value, list) and not {float, list}.isdisjoint(map(type, value)):
        return [_as_whole(item) for item in value]
    return value


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    """The same field where null may stand for its default."""
    options = field.get("anyOf", ())
    if {"type": "null"} in options:
        return field
    about: dict[str, Any] = {
        key: field[key] for key in ("default", "description", "title") if key in field
    }
    rest = {key: value for key, value in field.items() if key not in about}
    return {"anyOf": [*(options or [rest]), {"type": "null"}], **about}
