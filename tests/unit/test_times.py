"""Times: whole milliseconds inside, RFC 3339 in UTC outside."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldlog.domain.times import format_time, parse_time, to_ms
from tests.examples import examples

FIRST, LAST = parse_time("0001-01-01T00:00:00Z"), parse_time("9999-12-31T23:59:59.999Z")


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.001Z", 1),
        ("1970-01-01T00:00:00.0019Z", 1),
        ("1969-12-31T23:59:59.999Z", -1),
        ("1969-12-31T23:59:59.9995Z", -1),
        ("2026-11-23T09:00:02.481Z", 1795424402481),
        ("2026-11-23T10:30:02.481+01:30", 1795424402481),
        ("2026-11-23T09:00:02.481-00:00", 1795424402481),
        ("2024-02-29T12:00:00Z", 1709208000000),
        ("0001-01-01T00:00:00Z", -62135596800000),
        ("9999-12-31T23:59:59.999999Z", 253402300799999),
    ],
)
def test_valid_times(text, ms):
    """Finer digits are cut off, towards the past."""
    assert parse_time(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "0",
        "1795424402481",
        "2026-11-23",
        "2026-11-23T09:00:00",
        "2026-02-30T09:00:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T09:00:00Z\n",
        "2026-11-23T09:00:00+1:00",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59.999-00:01",
        "10000-01-01T00:00:00Z",
        "２026-11-23T09:00:00Z",
    ],
)
def test_invalid_times_are_refused(text):
    """A time without an offset is ambiguous, and Python's calendar has the years 1-9999."""
    with pytest.raises(ValueError, match=r".+"):
        parse_time(text)


@examples(100)
@given(st.integers(FIRST, LAST))
def test_every_time_comes_back(ms):
    """Times have one fixed form, because they are stored and compared as text."""
    text = format_time(ms)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert parse_time(text) == ms


@examples(50)
@given(st.integers(FIRST, LAST), st.integers(FIRST, LAST))
def test_the_texts_are_in_the_order_of_the_times(a, b):
    """A database may sort by the text or by the number."""
    assert (format_time(a) < format_time(b)) == (a < b)


@examples(50)
@given(
    st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31)),
    st.integers(-14 * 60, 14 * 60),
)
def test_the_offset_does_not_matter(at, minutes):
    """Only the moment counts."""
    there = at.replace(tzinfo=UTC).astimezone(timezone(timedelta(minutes=minutes)))
    assert to_ms(there) == to_ms(at.replace(tzinfo=UTC))
