"""What every body that clients send has in common: strict types, null, unknown and refused fields.

A rule that pydantic has no word for is raised as `invalid` or `unsupported`; `errors.py` turns both
into answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationInfo,
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


class Schema(BaseModel):
    """Unknown fields are kept aside, so that they can be named in a log, and change nothing."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)
    refused: ClassVar[refused_fields.Neutral] = {}
    without_effect: ClassVar[Mapping[str, str]] = {}

    @property
    def unknown_fields(self) -> set[str]:
        return set(self.model_extra or ()) - self.refused.keys() - self.without_effect.keys()

    @field_validator("*", mode="before")
    @classmethod
    def _read_null_as_default(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name is not None
        field = cls.model_fields[info.field_name]
        if value is not None or field.is_required():
            return value
        return field.get_default(call_default_factory=True, validated_data={})

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
        schema["properties"] = {
            **properties,
            **{name: {"description": text} for name, text in cls.without_effect.items()},
            **refused_fields.describe(cls.refused),
        }
        return schema


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
