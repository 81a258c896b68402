"""Numbers are decoded to the values that msgspec gives them, and refused where it refuses them."""

from __future__ import annotations

import importlib
import pkgutil
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import foldlog.api
import foldlog.domain
import foldlog.infrastructure
from foldlog.domain.changesets import decode_changesets
from foldlog.domain.errors import InvalidChangeset
from foldlog.domain.events import decode_event
from foldlog.domain.json_reader import decode_value
from foldlog.domain.limits import LIMITS

digits = st.text("0123456789", min_size=1, max_size=40)
numbers = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.integers(0, 10**25),
    st.one_of(st.just(""), digits.map(lambda text: f".{text}")),
    st.one_of(
        st.just(""),
        st.builds(
            "{}{}{}".format,
            st.sampled_from("eE"),
            st.sampled_from(["", "+", "-"]),
            st.one_of(st.integers(0, 400), st.sampled_from([307, 308, 309, 323, 324, 325])),
        ),
    ),
)


def outcome(decode: Any, text: str) -> Any:
    """Returns the type and the bits of the decoded number, or the text of the error."""
    try:
        value = decode(f'{{"a":[1,{text}]}}'.encode())["a"][1]
    except msgspec.DecodeError as exc:
        return type(exc), str(exc)
    return type(value), struct.pack("d", value) if type(value) is float else value


@given(numbers)
def test_a_number_is_decoded_as_msgspec_decodes_it(text):
    assert outcome(decode_value, text) == outcome(msgspec.json.decode, text)


@pytest.mark.parametrize(
    "text",
    [
        *("5e-324", "4.9e-324", "2.5e-324", "2.4e-324", "2.2250738585072011e-308", "1e-9999"),
        *("1.7976931348623157e308", "1.7976931348623159e308", "1e400", "-1e400", "0e999"),
        *("1e23", "9007199254740993.0", "-0.0", "-0e5", "18446744073709551616"),
        *("1" * 400, "1" * 400 + ".0", "1" * 5_000, "0." + "1" * 2_000, "9" * 308 + ".9"),
        *("1.", ".5", "+1.5", "01.5", "1e", "1_0.5", "1e5_0", "1.5 ", "1 .5", "0x1p3"),
        *("NaN", "Infinity", "-Infinity", "\u0661.\u0665"),
    ],
)
def test_the_edges_are_decoded_as_msgspec_decodes_them(text):
    assert outcome(decode_value, text) == outcome(msgspec.json.decode, text)


def test_a_number_beyond_all_doubles_is_refused_with_its_place():
    push = (
        b'[{"id":"0191c2d2-0000-7000-8000-000000000001","base":0,"made_at":"2026-01-01T00:00:00Z",'
        b'"ops":[{"op":"put","collection":"c","id":"r","fields":{"a":1e400}}]}]'
    )
    with pytest.raises(InvalidChangeset, match="out of range") as found:
        decode_changesets(push, "0191c2d2-0000-7000-8000-000000000002", LIMITS)
    assert found.value.extra == {"index": 0, "pointer": "/0/ops/0/fields"}
    event = b'{"seq":1,"kind":"changeset","id":"x","received_at":"","body":[%b]}'
    assert decode_event(event % b"1e308").body == [1e308]
    with pytest.raises(msgspec.ValidationError, match="out of range"):
        decode_event(event % b"1e309")


def decoders() -> Iterator[tuple[str, Any]]:
    """Yields the JSON decoders that the modules of the service keep."""
    for package in (foldlog.domain, foldlog.api, foldlog.infrastructure):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for name, value in vars(importlib.import_module(module.name)).items():
                decoder = getattr(value, "__self__", value)
                if isinstance(decoder, msgspec.json.Decoder):
                    yield f"{module.name}.{name}", decoder


def has_any(info: Any) -> bool:
    """Returns whether a value of this type may hold a value of the type `Any`."""
    if isinstance(info, msgspec.inspect.AnyType):
        return True
    if not isinstance(info, msgspec.Struct):
        return False
    below = (getattr(info, name) for name in info.__struct_fields__ if name != "cls")
    return any(
        has_any(one) for item in below for one in (item if isinstance(item, tuple) else (item,))
    )


def test_every_decoder_of_values_of_records_reads_numbers_by_float():
    """msgspec takes twenty times longer for `5e-324`."""
    found = dict(decoders())
    of_values = {n: d for n, d in found.items() if has_any(msgspec.inspect.type_info(d.type))}
    assert len(of_values) >= 8
    assert [name for name, decoder in of_values.items() if decoder.float_hook is None] == []
