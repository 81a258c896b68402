"""Names and ids: their syntax, and ids that are derived from a device's own keys."""

from __future__ import annotations

import string
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldlog.domain.names import (
    id_of_local,
    is_collection,
    is_record_id,
    is_space,
    is_uuid,
    time_ordered_id,
)
from tests.helpers import A, B

ALLOWED = set(string.ascii_letters + string.digits + "-_.")
ODD = ["\0", "\n", " ", "/", "%", "é", "٣", "\U0001f600", "ı", "K"]  # the last is a Kelvin sign


@pytest.mark.parametrize("char", [*map(chr, range(128)), *ODD], ids=repr)
def test_each_character_alone_and_in_the_middle_and_at_the_end(char):
    """ASCII letters, digits, - _ and . only; a space's name has lower case only."""
    for name in (f"a{char}", f"{char}a", f"a{char}a"):
        assert is_collection(name) == (char in ALLOWED)
        assert is_space(name) == (char in ALLOWED - set(string.ascii_uppercase))


@pytest.mark.parametrize("check", [is_space, is_collection])
def test_lengths_and_dots(check):
    """Names have 1-64 characters; . and .. are reserved, because they mean folders in a path."""
    assert [length for length in range(70) if check("a" * length)] == list(range(1, 65))
    assert [name for name in (".", "..", "...", ".a", "a.") if check(name)] == ["...", ".a", "a."]
    assert not check("a" * 10_000_000)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("x", True),
        ("x" * 128, True),
        ("\U0001f600" * 128, True),
        ("a/b %2f?#\n", True),
        (".", True),
        ("", False),
        ("x" * 129, False),
        ("\0", False),
        ("a\0b", False),
        ("\ud800", False),
        ("a\udfff", False),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_record_ids(text, is_one):
    """Record ids have 1-128 code points, except NUL and surrogates. Apps choose the rest."""
    assert is_record_id(text) == is_one


def test_uuids_have_one_spelling():
    """Lower case with hyphens, so that `=` can compare them."""
    one = str(uuid.uuid4())
    assert is_uuid(one)
    assert is_uuid(str(uuid.UUID(int=0)))
    for other in (
        one.upper().replace("4", "A"),
        one.replace("-", ""),
        f"{{{one}}}",
        f"urn:uuid:{one}",
        one[:-1],
        one + "0",
        one + "\n",
        "٣" + one[1:],
        "",
    ):
        assert not is_uuid(other)


def test_the_id_of_a_local_id_is_for_ever():
    """If this fails, devices would receive other ids for records that they already have."""
    assert id_of_local(A, "tasks", "7") == "34aeb4f7-5883-52b8-a0b8-54464550b1b8"
    assert id_of_local(A, "tasks", "7") == str(uuid.uuid5(uuid.UUID(A), "tasks/7"))
    others = [
        id_of_local(B, "tasks", "7"),
        id_of_local(A, "notes", "7"),
        id_of_local(A, "tasks", "8"),
    ]
    assert len({*others, id_of_local(A, "tasks", "7")}) == 4
    assert all(map(is_uuid, others))


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**74 - 1))
def test_a_time_ordered_id_is_a_uuid_of_version_7_that_begins_with_its_time(now_ms, random):
    """RFC 9562 section 5.7, read by the standard library."""
    made = time_ordered_id(now_ms, random)
    assert is_uuid(made)
    assert (uuid.UUID(made).version, uuid.UUID(made).variant) == (7, uuid.RFC_4122)
    assert uuid.UUID(made).int >> 80 == now_ms


def test_ids_of_one_moment_differ_and_later_ones_come_later():
    randoms = range(2**62 - 2, 2**62 + 2)
    ids = [time_ordered_id(ms, random) for ms in (1, 2, 2**47) for random in randoms]
    assert ids == sorted(set(ids))
