"""JSON values: equality by type, and values that some readers would change."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldlog.domain.limits import INTEGER_MAX
from foldlog.domain.values import ABSENT, check_value, is_number, same, sum_of
from tests.examples import examples
from tests.oracle import NOTHING, canonical

VALUES = [
    ABSENT,
    None,
    True,
    False,
    0,
    -0.0,
    1,
    1.0,
    1.5,
    INTEGER_MAX,
    float(INTEGER_MAX),
    1e308,
    "",
    "1",
    "true",
    [],
    [1],
    [1.0],
    [True],
    [1, 2],
    [2, 1],
    [[]],
    [None],
    {},
    {"a": 1},
    {"a": 1.0},
    {"a": True},
    {"a": None},
    {"b": 1},
    {"a": 1, "b": 2},
    {"b": 2, "a": 1},
]


@pytest.mark.parametrize("a", VALUES, ids=repr)
def test_same_for_every_pair(a):
    """`true` differs from 1, but 1 is 1.0, at every depth. Null differs from a missing field.
    Objects are unordered."""

    def text(value):
        return canonical(NOTHING if value is ABSENT else value)

    assert [same(a, b) for b in VALUES] == [text(a) == text(b) for b in VALUES]


numbers = st.integers(-INTEGER_MAX, INTEGER_MAX) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@examples(50)
@given(values, values)
def test_same_is_an_equality(a, b):
    """Every value equals itself, and equality is symmetric."""
    assert same(a, a)
    assert same(a, b) == same(b, a) == (canonical(a) == canonical(b))


@examples(50)
@given(values)
def test_every_plain_value_may_be_kept(value):
    """All that JSON can express and a double can hold."""
    check_value(value, 32)


@pytest.mark.parametrize("value", [INTEGER_MAX + 1, -INTEGER_MAX - 1, 10**30, math.nan, math.inf])
@pytest.mark.parametrize("inside", [lambda v: v, lambda v: [1, v], lambda v: {"a": {"b": v}}])
def test_values_that_some_readers_cannot_hold_are_refused(value, inside):
    """Such values are refused at every depth of a document."""
    with pytest.raises(ValueError, match=r"integer|finite"):
        check_value(inside(value), 32)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [1, 2, 32, 33, 500])
def test_nesting_is_counted_in_containers(depth):
    """32 levels are allowed. A plain value uses no level."""
    check_value("plain", 0)
    if depth <= 32:
        check_value(nested(depth), 32)
    else:
        with pytest.raises(ValueError, match="nested"):
            check_value(nested(depth), 32)


@pytest.mark.parametrize(
    ("value", "is_one"),
    [(0, True), (0.5, True), (True, False), (None, False), ("1", False), ([1], False)],
)
def test_numbers(value, is_one):
    """`true` differs from a number."""
    assert is_number(value) == is_one


@pytest.mark.parametrize(
    ("a", "b", "total"),
    [
        (1, 1, 2),
        (1.0, 1.0, 2),
        (0.5, 0.5, 1),
        (0.1, 0.2, 0.30000000000000004),
        (-0.0, -0.0, 0),
        (INTEGER_MAX, 0, INTEGER_MAX),
        (INTEGER_MAX, 1, float(2**53)),
        (INTEGER_MAX, 2, float(2**53)),
        (1e308, 1e308, None),
        (-1e308, -1e308, None),
        (1e308, -1e308, 0),
    ],
)
def test_sums(a, b, total):
    """Numbers are added as doubles. A whole sum is an int, so that all replicas write the same
    bytes."""
    assert repr(sum_of(a, b)) == repr(total)
    assert repr(sum_of(b, a)) == repr(total)


@examples(100)
@given(numbers, numbers)
def test_every_sum_may_be_kept(a, b):
    """A sum is as valid as the numbers that came in, or `None`."""
    total = sum_of(a, b)
    if total is not None:
        check_value(total, 0)
        assert float(total) == float(a) + float(b)


def test_absent():
    """`ABSENT` counts as false, and differs from `None`."""
    assert not ABSENT
    assert ABSENT is not None
    assert repr(ABSENT) == "ABSENT"
