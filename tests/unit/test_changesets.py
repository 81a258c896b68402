"""Decoding the changesets of a push: an error has the index of the changeset and a JSON pointer."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldlog.domain.changesets import (
    Changeset,
    Operation,
    WireOperation,
    decode_changesets,
    local_ids,
    same_content,
)
from foldlog.domain.errors import InvalidChangeset, InvalidRequest, LimitExceeded
from foldlog.domain.limits import INTEGER_MAX, LIMITS, Limits
from tests.examples import examples
from tests.helpers import A, B, add, changeset, delete, new_id, push_of, put

Json = dict[str, Any]
ID = "0198a3c2-0000-4000-8000-000000000000"


def decode(*changesets: Json, device: str = A, limits: Limits = LIMITS) -> list[Changeset]:
    return decode_changesets(msgspec.json.encode(changesets), device, limits)


def decode_text(text: str) -> list[Changeset]:
    """`text` is the second of two changesets, so that the index in an error must be counted."""
    good = msgspec.json.encode(changeset()).decode()
    return decode_changesets(f"[{good}, {text}]".encode(), A, LIMITS)


def op_text(op: str) -> str:
    return f'{{"id":"{ID}","base":0,"made_at":"2026-11-23T09:00:00Z","ops":[{op}]}}'


def fields_text(fields: str) -> str:
    return op_text(f'{{"op":"put","collection":"c","id":"x","fields":{fields}}}')


def without(members: Json, name: str) -> Json:
    return {key: value for key, value in members.items() if key != name}


# -- Valid changesets ---------------------------------------------------------------------------


def test_the_example_of_the_design():
    """Three operations are decoded as they were sent."""
    [read] = decode(
        {
            "id": ID,
            "counter": 7,
            "base": 41,
            "made_at": "2026-11-23T09:00:00.123Z",
            "ops": [
                put("8f0c", title="Buy milk", done=False),
                add("2b91", "stats", taps=1),
                delete("77aa"),
            ],
        }
    )
    assert (read.id, read.counter, read.base) == (ID, 7, 41)
    assert read.made_at_ms == 1795424400123
    assert [(op.op, op.key) for op in read.ops] == [
        ("put", ("tasks", "8f0c")),
        ("add", ("stats", "2b91")),
        ("delete", ("tasks", "77aa")),
    ]
    assert read.ops[0].fields == {"title": "Buy milk", "done": False}
    assert not read.is_guarded


def test_a_push_may_be_empty():
    """An empty push only pulls."""
    assert decode() == []
    assert decode_changesets(msgspec.Raw(b" [ ] "), A, LIMITS) == []


def test_a_put_without_fields_equals_one_with_empty_fields():
    """Both make an empty record. They are written in the same way, so their content is equal."""
    [read] = decode(changeset(without(put(), "fields")))
    assert read.ops[0].fields == {}
    assert msgspec.json.encode(read.ops[0]) == msgspec.json.encode(
        decode(changeset(put()))[0].ops[0]
    )


@pytest.mark.parametrize(
    "op",
    [
        {**put(), "if_seq": 0},
        {**put(), "expect": {"a": None}},
        {**put(), "expect": None},
        {**delete(), "expect": {}},
        {**add(n=1), "if_seq": INTEGER_MAX},
    ],
    ids=str,
)
def test_every_operation_may_be_guarded(op):
    """`expect: null` is a guard too: no live record may be there."""
    [read] = decode(changeset(op))
    assert read.ops[0].is_guarded
    assert read.is_guarded


def test_the_guard_of_a_whole_changeset():
    """It guards the changeset, even if all its operations are unguarded."""
    [read] = decode(changeset(guard="unchanged"))
    assert read.is_guarded


VALUES = [
    None,
    True,
    0,
    -0.0,
    0.1,
    1e308,
    5e-324,
    INTEGER_MAX,
    -INTEGER_MAX,
    "",
    "a\0b",
    "\u2028 \U0001f600 \u0301",
    '","ops":[',
    [],
    {},
    [1, [True, {"": None, "a/b~c": ["x"]}]],
    {"_type_": "datetime", "_data_": "1"},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_every_json_value_comes_through_unchanged(value):
    """A user's value is kept unchanged, as a value and as bytes."""
    [read] = decode(changeset({**put(field=value), "expect": {"field": value}}))
    assert msgspec.json.encode(read.ops[0].fields) == msgspec.json.encode({"field": value})
    assert msgspec.json.encode(read.ops[0].expect) == msgspec.json.encode({"field": value})


def test_the_last_of_two_equal_names_counts():
    """JSON readers differ here. The decoded value is stored, so all readers agree."""
    op = '{"op":"put","collection":"c","id":"x","id":"y","fields":{"a":1,"a":2}}'
    read = decode_text(op_text(op))[1].ops[0]
    assert (read.id, read.fields) == ("y", {"a": 2})
    assert msgspec.json.encode(read) == b'{"op":"put","collection":"c","id":"y","fields":{"a":2}}'


# -- local_id ----------------------------------------------------------------------------------


def test_a_local_id_becomes_the_id_that_the_design_names():
    """uuid5(device, collection + "/" + local_id): the same on every retry and every replay."""
    op = {"op": "put", "collection": "tasks", "local_id": "7"}
    [read] = decode(changeset(op), device=A)
    assert read.ops[0].id == str(uuid.uuid5(uuid.UUID(A), "tasks/7"))
    assert read.ops[0].local_id == "7"
    assert decode(changeset(op), device=B)[0].ops[0].id != read.ops[0].id


def test_local_ids_are_listed_by_collection():
    """A device's own key is unique only within its collection."""
    ops = [
        {"op": "put", "collection": "tasks", "local_id": "7"},
        {"op": "delete", "collection": "tasks", "local_id": "7"},
        {"op": "put", "collection": "notes", "local_id": "7"},
        put("an id"),
    ]
    [read] = decode(changeset(*ops))
    found = local_ids(read.ops)
    assert {name: list(ids) for name, ids in found.items()} == {"tasks": ["7"], "notes": ["7"]}
    assert found["tasks"]["7"] == read.ops[0].id == read.ops[1].id
    assert found["notes"]["7"] == read.ops[2].id != read.ops[0].id
    assert local_ids(decode(changeset())[0].ops) == {}


# -- Invalid changesets -------------------------------------------------------------------------

OP = put("x", a=1)
MALFORMED: list[tuple[str, Any, str]] = [
    # (the fault, the changeset, the pointer)
    ("not an object", 7, ""),
    ("null", None, ""),
    ("no id", without(changeset(), "id"), ""),
    ("no base", without(changeset(), "base"), ""),
    ("no made_at", without(changeset(), "made_at"), ""),
    ("no ops", without(changeset(), "ops"), ""),
    ("unknown member", changeset(sent_at="now"), ""),
    ("device is not of a changeset", changeset(device=A), ""),
    ("id is no UUID", changeset(id="7"), "/id"),
    ("id in upper case", changeset(id=ID.upper()), "/id"),
    ("id without hyphens", changeset(id=ID.replace("-", "")), "/id"),
    ("id with a newline", changeset(id=ID + "\n"), "/id"),
    ("id is a number", {**changeset(), "id": 7}, "/id"),
    ("base below 0", changeset(base=-1), "/base"),
    ("base is no integer", changeset(base=1.5), "/base"),
    ("base is true", changeset(base=True), "/base"),
    ("base is a text", changeset(base="1"), "/base"),
    ("base beyond 2^53-1", changeset(base=INTEGER_MAX + 1), "/base"),
    ("base beyond 64 bits", changeset(base=2**64), "/base"),
    ("counter 0", changeset(counter=0), "/counter"),
    ("counter is null", changeset(counter=None), "/counter"),
    ("counter beyond 2^53-1", changeset(counter=INTEGER_MAX + 1), "/counter"),
    ("made_at without offset", changeset(made_at="2026-11-23T09:00:00"), "/made_at"),
    ("made_at is a number", changeset(made_at=7), "/made_at"),
    ("made_at before year 1 in UTC", changeset(made_at="0001-01-01T00:00:00+01:00"), "/made_at"),
    ("made_at after year 9999", changeset(made_at="9999-12-31T23:59:59-01:00"), "/made_at"),
    ("unknown guard", changeset(guard="always"), "/guard"),
    ("guard is null", changeset(guard=None), "/guard"),
    ("no operations", {**changeset(), "ops": []}, "/ops"),
    ("ops is an object", {**changeset(), "ops": OP}, "/ops"),
    ("op is a list", changeset(["put"]), "/ops/0"),
    ("no op", changeset(OP, without(OP, "op")), "/ops/1"),
    ("unknown op", changeset(OP, {**OP, "op": "patch"}), "/ops/1/op"),
    ("unknown member of an op", changeset(OP, {**OP, "feilds": {}}), "/ops/1"),
    ("no collection", changeset(without(OP, "collection")), "/ops/0"),
    ("empty collection", changeset({**OP, "collection": ""}), "/ops/0/collection"),
    ("collection ..", changeset({**OP, "collection": ".."}), "/ops/0/collection"),
    ("collection with a slash", changeset({**OP, "collection": "a/b"}), "/ops/0/collection"),
    ("collection of 65", changeset({**OP, "collection": "c" * 65}), "/ops/0/collection"),
    ("neither id nor local_id", changeset(without(OP, "id")), "/ops/0"),
    ("both id and local_id", changeset({**OP, "local_id": "7"}), "/ops/0"),
    ("empty id", changeset({**OP, "id": ""}), "/ops/0/id"),
    ("id of 129", changeset({**OP, "id": "x" * 129}), "/ops/0/id"),
    ("id with NUL", changeset({**OP, "id": "x\0"}), "/ops/0/id"),
    ("local_id with NUL", changeset({**without(OP, "id"), "local_id": "\0"}), "/ops/0/local_id"),
    ("fields is null", changeset({**OP, "fields": None}), "/ops/0/fields"),
    ("fields is a list", changeset({**OP, "fields": [1]}), "/ops/0/fields"),
    ("delete with fields", changeset({**delete(), "fields": {}}), "/ops/0/fields"),
    ("delete with unset", changeset({**delete(), "unset": ["a"]}), "/ops/0/unset"),
    ("add with unset", changeset({**add(n=1), "unset": ["a"]}), "/ops/0/unset"),
    ("add without fields", changeset(without(add(), "fields")), "/ops/0/fields"),
    ("add of no field", changeset(add()), "/ops/0/fields"),
    ("add of true", changeset(add(n=True)), "/ops/0/fields/n"),
    ("add of a text", changeset(add(n="1")), "/ops/0/fields/n"),
    ("add of null", changeset(add(**{"a/b~c": None})), "/ops/0/fields/a~1b~0c"),
    ("set and unset", changeset({**OP, "unset": ["b", "a"]}), "/ops/0/unset"),
    ("unset of a number", changeset({**OP, "unset": ["b", 1]}), "/ops/0/unset/1"),
    ("if_seq below 0", changeset({**OP, "if_seq": -1}), "/ops/0/if_seq"),
    ("if_seq is null", changeset({**OP, "if_seq": None}), "/ops/0/if_seq"),
    ("expect is a list", changeset({**OP, "expect": []}), "/ops/0/expect"),
    ("erased, as only the log has it", changeset({**OP, "erased": "00"}), "/ops/0/erased"),
]


@pytest.mark.parametrize(
    ("wrong", "pointer"), [pytest.param(*case[1:], id=case[0]) for case in MALFORMED]
)
def test_a_fault_is_reported_with_its_place(wrong, pointer):
    """An error has the index of the changeset and a JSON pointer into the array. The device can
    then set that changeset aside and send the rest."""
    with pytest.raises(InvalidChangeset) as refused:
        decode(changeset(), changeset(), wrong)
    assert refused.value.extra == {"index": 2, "pointer": f"/2{pointer}"}
    assert str(refused.value)


def test_an_unknown_member_is_named_in_the_message():
    """The message contains the name, so a misspelt one is easy to find."""
    with pytest.raises(InvalidChangeset, match="feilds"):
        decode(changeset({**OP, "feilds": {}}))


def test_a_name_that_looks_like_a_path_is_no_path():
    """The message quotes the sender's text; the index is still the one of the changeset."""
    with pytest.raises(InvalidChangeset) as refused:
        decode(changeset(), changeset({**OP, "x - at `$[7].ops[3]": 1}))
    assert refused.value.extra == {"index": 1, "pointer": "/1/ops/0"}


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        (op_text('{"op":"put","collection":"c","id":"\\ud800"}'), ""),
        (fields_text('{"a":"\\udc00b"}'), ""),
        (fields_text('{"\\ud800":1}'), ""),
        (fields_text('{"a":NaN}'), ""),
        (fields_text('{"a":-Infinity}'), ""),
        (fields_text('{"a":1e400}'), "/ops/0/fields"),
        (fields_text('{"a":[[1e400]]}'), "/ops/0/fields"),
        (fields_text('{"a":' + "9" * 5_000 + "}"), "/ops/0/fields"),
    ],
    ids=[
        "lone surrogate in an id",
        "lone surrogate in a value",
        "lone surrogate in a name",
        "NaN",
        "-Infinity",
        "beyond a double",
        "beyond a double, inside",
        "5,000 digits",
    ],
)
@pytest.mark.parametrize("more", ["", ', {"id": 7}'])
def test_unreadable_json_is_reported_with_its_index(text, pointer, more):
    """A text that was cut in the middle of an emoji must not block a device's queue for ever."""
    with pytest.raises(InvalidChangeset) as refused:
        decode_text(text + more)
    assert refused.value.extra == {"index": 1, "pointer": f"/1{pointer}"}


@pytest.mark.parametrize(
    "text",
    [
        fields_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
        fields_text('{"a":' * 40_000 + "1" + "}" * 40_000),
        fields_text('{"a":"][}{,","b":' + "[" * 1_000 + "]" * 1_000 + "}"),
        fields_text('{"a":' + "[" * 100_000),
        fields_text('{"a":' + "[" * 80_000 + '"' + '\\"' * 80_000 + "\\"),
    ],
    ids=["lists", "objects", "brackets in a text", "never closed", "a text that is never closed"],
)
@pytest.mark.parametrize("more", ["", ', {"id": 7}'])
def test_deep_nesting_is_reported_with_its_index(text, more):
    """Every reader stops at such nesting; the index is found by a search."""
    with pytest.raises(LimitExceeded) as refused:
        decode_text(text + more)
    where = {"index": 1, "pointer": "/1"}
    assert refused.value.extra == {"limit": "nesting_max", "value": LIMITS.nesting_max, **where}


def test_invalid_utf8_is_reported_with_its_index():
    """Some readers would accept such bytes inside a value."""
    good = msgspec.json.encode(changeset())
    bad = op_text('{"op":"put","collection":"c","id":"x","fields":{"a":"@"}}').encode()
    for odd in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xe4"):
        with pytest.raises(InvalidChangeset) as refused:
            decode_changesets(b"[%b,%b]" % (good, bad.replace(b"@", odd)), A, LIMITS)
        assert refused.value.extra == {"index": 1, "pointer": "/1"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"[",
        b"[,]",
        b"[] x",
        b"\xef\xbb\xbf[]",
        b"{}",
        b'"x"',
        b"null",
        b"\xff",
        b'[{"id":',
        b"[" + msgspec.json.encode(changeset()),
        b"[" + msgspec.json.encode(changeset()) + b",",
        b"[" + msgspec.json.encode(changeset()) + b",]",
        b"[" + msgspec.json.encode(changeset()) + b',{"id',
        b'{"a":' * 40_000,
    ],
    ids=range(16),
)
def test_without_an_array_no_changeset_is_blamed(raw):
    """The array was cut on the way, or is another value. An index would make the device set aside a
    valid changeset."""
    with pytest.raises(InvalidRequest) as refused:
        decode_changesets(raw, A, LIMITS)
    assert refused.value.extra == {}


@examples(100)
@given(st.data())
def test_damaged_bytes_are_decoded_or_refused(data):
    """For any changed byte, the result is a list of changesets or an error with a code."""
    whole = bytearray(msgspec.json.encode([changeset(put(a="é\U0001f600"), add(n=1))] * 2))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidRequest):
        decode_changesets(bytes(whole), A, LIMITS)


# -- Limits ------------------------------------------------------------------------------------

SMALL = Limits(
    operations_per_changeset_max=3,
    changesets_per_push_max=3,
    field_name_length_max=3,
    fields_per_operation_max=3,
    nesting_max=3,
)
ABC = {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    "within",
    [
        changeset(OP, OP, OP),
        changeset(put(**ABC)),
        changeset(put(abc=1)),
        changeset({**put(), "unset": ["a", "b", "abc"]}),
        changeset({**put(), "expect": ABC}),
        changeset(put(a=[[[]]])),
        changeset(put(a={"too long": [{}]})),
    ],
    ids=["operations", "fields", "name", "unset", "expect", "nesting", "names in values"],
)
def test_a_value_at_a_limit_passes(within):
    """A limit is the last allowed value."""
    assert len(decode(within, within, within, limits=SMALL)) == 3


@pytest.mark.parametrize(
    ("limit", "beyond"),
    [
        ("operations_per_changeset_max", changeset(OP, OP, OP, OP)),
        ("fields_per_operation_max", changeset(put(**ABC, d=4))),
        ("fields_per_operation_max", changeset({**put(), "unset": ["a", "b", "c", "d"]})),
        ("fields_per_operation_max", changeset({**put(), "expect": {**ABC, "d": 4}})),
        ("field_name_length_max", changeset(put(abcd=1))),
        ("field_name_length_max", changeset({**put(), "unset": ["abcd"]})),
        ("field_name_length_max", changeset({**put(), "expect": {"abcd": 1}})),
    ],
    ids=["operations", "fields", "unset", "expect", "name", "name in unset", "name in expect"],
)
def test_a_value_over_a_limit_is_refused_with_its_name(limit, beyond):
    """The error has the limit's name, its value, and the index."""
    with pytest.raises(LimitExceeded) as refused:
        decode(changeset(), beyond, limits=SMALL)
    assert refused.value.extra == {"limit": limit, "value": 3, "index": 1}


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        (changeset(put(a=INTEGER_MAX + 1)), "/ops/0/fields/a"),
        (changeset(put(a=-INTEGER_MAX - 1)), "/ops/0/fields/a"),
        (changeset(put(a=2**64)), "/ops/0/fields/a"),
        (changeset(put(a=[{"b": 2**53}])), "/ops/0/fields/a"),
        (changeset({**OP, "expect": {"a": 2**53}}), "/ops/0/expect/a"),
    ],
    ids=["beyond 2^53-1", "below", "beyond 64 bits", "far inside", "in expect"],
)
def test_integers_are_limited(wrong, pointer):
    """The error has the limit's name and value."""
    with pytest.raises(LimitExceeded) as refused:
        decode(changeset(), wrong)
    where = {"index": 1, "pointer": f"/1{pointer}"}
    assert refused.value.extra == {"limit": "integer_max", "value": INTEGER_MAX, **where}


def test_for_too_many_changesets_none_is_blamed():
    """The error lacks an index, so the client halves its batch."""
    with pytest.raises(LimitExceeded) as refused:
        decode(*[changeset()] * 4, limits=SMALL)
    assert refused.value.extra == {"limit": "changesets_per_push_max", "value": 3}


def test_for_too_many_operations_no_changeset_is_blamed():
    """The client halves its batch. A valid changeset alone is always small enough."""
    assert LIMITS.operations_per_push_max >= LIMITS.operations_per_changeset_max
    small = Limits(operations_per_push_max=3)
    decode(changeset(OP, OP, OP), limits=small)
    decode(changeset(OP, OP), changeset(OP), limits=small)
    with pytest.raises(LimitExceeded) as refused:
        decode(changeset(OP, OP), changeset(OP, OP), limits=small)
    assert refused.value.extra == {"limit": "operations_per_push_max", "value": 3}


@pytest.mark.parametrize("odd", [b'"\xff"', b"[" * 1_000, b'"\\ud800"', b"NaN"], ids=str)
def test_only_small_pushes_are_searched_for_a_fault(odd):
    """The search is slow. For a larger push the client sends one half, and repeats this until the
    push is small enough."""
    text = op_text('{"op":"put","collection":"c","id":"x","fields":{"a":"","b":@}}').encode()
    bad = text.replace(b"@", odd)
    raw = b"[%b]" % bad.replace(b'""', b'"%b"' % (b"x" * (LIMITS.unreadable_bytes_max - len(bad))))
    with pytest.raises(LimitExceeded) as refused:
        decode_changesets(raw, A, LIMITS)
    limit = {"limit": "unreadable_bytes_max", "value": LIMITS.unreadable_bytes_max}
    assert refused.value.extra == limit
    with pytest.raises(InvalidRequest) as refused:
        decode_changesets(raw.replace(b"xx", b"", 1), A, LIMITS)
    assert refused.value.extra["index"] == 0


@pytest.mark.parametrize("value", [[[[[]]]], {"a": {"b": {"c": {}}}}, [{"a": [[1]]}]], ids=str)
def test_nesting_is_limited(value):
    """Deep nesting is refused as an attack."""
    with pytest.raises(LimitExceeded, match="nested") as refused:
        decode(changeset(put(a=value)), limits=SMALL)
    where = {"index": 0, "pointer": "/0/ops/0/fields/a"}
    assert refused.value.extra == {"limit": "nesting_max", "value": SMALL.nesting_max, **where}


# -- Equal content ------------------------------------------------------------------------------

BASIC = changeset(put(a=1, b=[True]), id=ID)


def is_same(one: Json, other: Json, *, device: str = A, other_device: str = A) -> bool:
    [first] = decode(one, device=device)
    [second] = decode(other, device=other_device)
    assert same_content(second, first) == same_content(first, second)
    return same_content(first, second)


@pytest.mark.parametrize(
    "again",
    [
        BASIC,
        {**BASIC, "base": 7, "counter": 3},
        {**BASIC, "made_at": "2027-01-01T00:00:00Z"},
        {**BASIC, "ops": [put(a=1.0, b=[True])]},
        {**BASIC, "ops": [put(b=[True], a=1)]},
    ],
    ids=["as it was", "base and counter", "made_at", "1.0", "order of fields"],
)
def test_equal_content_in_another_form(again):
    """Content is compared as values. `base` and `counter` are ignored."""
    assert is_same(BASIC, again)


@pytest.mark.parametrize(
    "again",
    [
        {**BASIC, "guard": "unchanged"},
        {**BASIC, "ops": [put(a=True, b=[True])]},
        {**BASIC, "ops": [put(a=1, b=[1])]},
        {**BASIC, "ops": [put(a=1)]},
        {**BASIC, "ops": [put(a=1, b=[True], c=None)]},
        {**BASIC, "ops": [put("s", a=1, b=[True])]},
        {**BASIC, "ops": [put("r", "notes", a=1, b=[True])]},
        {**BASIC, "ops": BASIC["ops"] * 2},
        {**BASIC, "ops": [{**BASIC["ops"][0], "unset": ["c"]}]},
        {**BASIC, "ops": [{**BASIC["ops"][0], "if_seq": 0}]},
        {**BASIC, "ops": [{**BASIC["ops"][0], "expect": None}]},
        {**BASIC, "ops": [{**BASIC["ops"][0], "expect": {}}]},
    ],
    ids=lambda again: str({k: v for k, v in again.items() if BASIC.get(k) != v}),
)
def test_other_content(again):
    """`true` differs from 1, null differs from a missing value, a guard is content."""
    assert not is_same(BASIC, again)


def test_add_and_put_of_a_number_differ():
    """The kind of an operation is part of the content."""
    assert not is_same(changeset(put(n=1), id=ID), changeset(add(n=1), id=ID))


def test_a_local_id_and_its_id_are_equal_content():
    """A device with a new id sends its queue with the record ids that the old device id gave."""
    local = {"op": "put", "collection": "tasks", "local_id": "7", "fields": {"a": 1}}
    id = decode(changeset(local))[0].ops[0].id
    plain = {**without(local, "local_id"), "id": id}
    assert is_same(changeset(local, id=ID), changeset(plain, id=ID), other_device=B)
    assert not is_same(changeset(local, id=ID), changeset(local, id=ID), other_device=B)


def test_an_erased_changeset_is_compared_by_its_id():
    """Stored values must be useless for guessing erased ones."""
    [sent] = decode(BASIC)

    class Stored:
        ops = [Operation("put", "tasks", "r", erased="00")]
        guard = msgspec.UNSET

    assert same_content(sent, Stored())


def test_the_order_of_an_operations_members_in_the_log_is_fixed():
    """The event commits to the bytes of its operations."""
    op = {"expect": {}, "if_seq": 1, "unset": ["b"], "fields": {"a": 1}, "local_id": "7"}
    [read] = decode(changeset({**op, "collection": "c", "op": "put"}))
    assert list(msgspec.json.decode(msgspec.json.encode(read.ops[0]))) == [
        "op",
        "collection",
        "id",
        "local_id",
        "fields",
        "unset",
        "if_seq",
        "expect",
    ]
    assert isinstance(read.ops[0], WireOperation)


def test_a_push_knows_when_it_was_sent():
    """`sent_at_ms` is in whole ms, like all times."""
    assert push_of(changeset(id=new_id())).sent_at_ms == 1795424400000
