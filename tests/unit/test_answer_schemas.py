"""JSON Schemas of responses follow the encoder, which writes defaults and leaves out UNSET."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec import UNSET, Raw, UnsetType

from foldlog.api.document.answer_schemas import AnswerSchemas, shape_of
from foldlog.api.shapes import answers
from foldlog.api.shapes.described import described
from foldlog.api.shapes.stored import SHAPES


class Part(msgspec.Struct, omit_defaults=True):
    name: str
    count: int = 0


class Pair(msgspec.Struct, array_like=True):
    seq: int
    device: str | None


class Whole(msgspec.Struct, rename={"from_": "from"}):
    """One of each type."""

    from_: Annotated[int, described("A seq.", minimum=1)]
    parts: list[Part] | Raw
    part: Part | None
    pair: Pair
    kind: Literal["a", "b"]
    text: str | None = None
    any: Any = UNSET
    flag: Annotated[bool, described("A flag.")] | UnsetType = UNSET


@pytest.fixture
def components():
    schemas = AnswerSchemas()
    assert schemas.reference(Whole) == {"$ref": "#/components/schemas/Whole"}
    return schemas.components


def test_a_member_is_required_if_the_encoder_always_writes_it(components):
    """A default makes a member optional only if the encoder omits defaults."""
    assert components["Whole"]["required"] == ["from", "kind", "pair", "part", "parts", "text"]
    assert components["Part"]["required"] == ["name"]


def test_types_and_descriptions_become_keywords(components):
    """Raw stands for stored JSON of the other type, so the schema leaves it out."""
    part = {"$ref": "#/components/schemas/Part"}
    properties = components["Whole"]["properties"]

    assert components["Whole"]["description"] == "One of each type."
    assert properties["from"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 2**53 - 1,
        "description": "A seq.",
    }
    assert properties["parts"] == {"type": "array", "items": part}
    assert properties["part"] == {"anyOf": [part, {"type": "null"}]}
    assert properties["text"] == {"type": ["string", "null"]}
    assert properties["any"] == {}
    assert properties["flag"] == {"type": "boolean", "description": "A flag."}


@pytest.mark.parametrize("text", [None, "x"])
def test_an_encoded_struct_fits_its_schema(components, text):
    """Members with a default, members that are UNSET, and members of arrays all fit."""
    whole = Whole(1, [Part("p"), Part("q", 2)], None, Pair(1, None), "a", text)
    validator = Draft202012Validator(
        {"$ref": "#/components/schemas/Whole", "components": {"schemas": components}}
    )

    validator.validate(msgspec.json.decode(msgspec.json.encode(whole)))

    assert not validator.is_valid({**msgspec.to_builtins(whole), "pair": [1]})


def test_every_struct_has_a_component_of_its_own():
    """Two structs with one name would share a component."""
    of_api = [
        value
        for value in vars(answers).values()
        if isinstance(value, type) and value.__module__ == answers.__name__
    ]
    names = [shape_of(struct).name for struct in [*SHAPES, *of_api]]
    schemas = AnswerSchemas()

    for struct in [*SHAPES, *of_api]:
        schemas.reference(struct)

    assert len(names) == len(set(names))
    assert set(names) <= schemas.components.keys()
