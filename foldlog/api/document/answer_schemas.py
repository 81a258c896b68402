"""Generates the JSON Schemas of responses from the structs that the service encodes.

msgspec has such a generator too, the function `msgspec.json.schema`. It marks every member with a
default value as optional, because a decoder accepts input without the member. But the encoder
writes the member into every response, unless the struct has the option `omit_defaults`. This module
therefore marks a member with a default value as required, unless the struct has this option.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

import msgspec
from msgspec import UNSET, UnsetType, inspect
from msgspec.structs import FieldInfo

from foldlog.api.shapes.described import Shape
from foldlog.api.shapes.stored import SHAPES
from foldlog.domain.limits import INTEGER_MAX

_REF = "#/components/schemas/"
_NULL = {"type": "null"}
_PLAIN: dict[type[inspect.Type], dict[str, Any]] = {
    inspect.AnyType: {},
    inspect.RawType: {},
    inspect.StrType: {"type": "string"},
    inspect.BoolType: {"type": "boolean"},
    inspect.NoneType: _NULL,
    # Every number of a response is a whole number of 0 or more.
    inspect.IntType: {"type": "integer", "minimum": 0, "maximum": INTEGER_MAX},
}


class AnswerSchemas:
    """Generates one OpenAPI component for each struct that the responses use. `components` is a
    dict from the names of the components to their JSON Schemas."""

    def __init__(self) -> None:
        self.components: dict[str, dict[str, Any]] = {}

    def reference(self, struct: type) -> dict[str, Any]:
        """Returns the JSON Schema `{"$ref": ...}`, which refers to the OpenAPI component of a
        struct. If `components` lacks the component, the method generates and adds it."""
        name = shape_of(struct).name
        if name not in self.components:
            self.components[name] = self._object(struct)
        return {"$ref": _REF + name}

    def _object(self, struct: type) -> dict[str, Any]:
        members = _members(struct)
        properties, required = {}, []
        for field in msgspec.structs.fields(struct):
            described = members.get(field.name, msgspec.Meta())
            if isinstance(described, msgspec.Meta):
                type_, is_required = Annotated[field.type, described], _is_required(struct, field)
            else:
                type_, is_required = described, True
            properties[field.encode_name] = self._schema(inspect.type_info(type_))
            if is_required:
                required.append(field.encode_name)
        return {
            "description": shape_of(struct).about,
            "type": "object",
            "properties": properties,
            "required": sorted(required),
        }

    def _schema(self, type_: inspect.Type) -> dict[str, Any]:
        match type_:
            case inspect.Metadata():
                return self._schema(type_.type) | (type_.extra_json_schema or {})
            case inspect.StructType(array_like=True):
                return self._tuple(field.type for field in type_.fields)
            case inspect.StructType():
                return self.reference(type_.cls)
            case inspect.UnionType():
                return self._union(type_)
            case inspect.TupleType():
                return self._tuple(type_.item_types)
            case inspect.ListType():
                return {"type": "array", "items": self._schema(type_.item_type)}
            case inspect.DictType():
                values = self._schema(type_.value_type)
                return {"type": "object", "additionalProperties": values}
            case inspect.LiteralType():
                return {"type": "string", "enum": list(type_.values)}
            case inspect.EnumType():
                return {"type": "string", "enum": [member.value for member in type_.cls]}
        return dict(_PLAIN[type(type_)])

    def _tuple(self, types: Any) -> dict[str, Any]:
        items = [self._schema(type_) for type_ in types]
        count = len(items)
        return {"type": "array", "prefixItems": items, "minItems": count, "maxItems": count}

    def _union(self, union: inspect.UnionType) -> dict[str, Any]:
        # Raw is the stored JSON of another type of the union.
        schemas = [self._schema(t) for t in union.types if not isinstance(t, inspect.RawType)]
        if len(schemas) == 1:
            return schemas[0]
        if len(schemas) == 2 and _NULL in schemas:
            (other,) = (schema for schema in schemas if schema != _NULL)
            if "type" in other:
                return other | {"type": [other["type"], "null"]}
        return {"anyOf": schemas}


def shape_of(struct: type) -> Shape:
    """Returns a `Shape` with the name and the description of a struct in the OpenAPI document.

    If the dict `SHAPES` has a shape for the struct, the function returns that shape. Otherwise it
    makes a shape from the name and the docstring of the class.
    """
    return SHAPES.get(struct) or Shape(struct.__name__, (struct.__doc__ or "").strip())


def _members(struct: type) -> dict[str, Any]:
    """Returns the descriptions of a struct's members for the OpenAPI document: a dict from the name
    of a member to a `Meta` or a type (see `Shape`).

    The dict has only the members that `SHAPES` describes for the struct or for a base class.
    """
    members: dict[str, Any] = {}
    for base in reversed(struct.__mro__):
        if base in SHAPES:
            members |= SHAPES[base].members
    unknown = members.keys() - {field.name for field in msgspec.structs.fields(struct)}
    assert not unknown, f"{struct.__name__} has no member {unknown}"
    return members


def _is_required(struct: Any, field: FieldInfo) -> bool:
    if field.default is UNSET or UnsetType in get_args(field.type):
        return False
    return field.required or not struct.__struct_config__.omit_defaults
