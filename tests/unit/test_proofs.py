"""Commitments, leaves and marks, computed here a second time from docs/explanation/proofs.md."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from foldlog.domain import proofs
from foldlog.domain.changesets import Changeset, WireOperation
from foldlog.domain.events import (
    LogEntry,
    Refusal,
    changeset_entry,
    decode_event,
    restored_entry,
    short_form,
)
from tests.helpers import A, B, add, delete, new_id, put

SALT = bytes(range(32))
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NASTY = [
    '","ops":[',
    ',"ops":',
    '"},"ops":[{"op":"delete"}]}',
    ',"body":{}}',
    "\\",
    '\\",\\"ops\\":',
    "é\u2028\0\U0001f600",
]


def entry_of(*ops: dict[str, Any], **members: Any) -> LogEntry:
    changeset = Changeset(
        id=members.pop("id", None) or new_id(),
        base=members.pop("base", 41),
        made_at=EPOCH + timedelta(milliseconds=members.pop("made_at", 1795424400123)),
        ops=[msgspec.convert(op, WireOperation) for op in ops],
        counter=members.pop("counter", 7),
        guard=members.pop("guard", UNSET),
    )
    return changeset_entry(
        changeset,
        **{
            "seq": 42,
            "device": A,
            "received_at": 1795424402481,
            "time": 1795424402000,
            "refusal": UNSET,
            "salt": SALT,
            **members,
        },
    )


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def test_the_commitments_are_those_of_the_design():
    """salt_i = HMAC(salt, uint32be(i)), commitment_i = HMAC(salt_i, the operation's exact bytes),
    ops_hash = SHA-256 of all of them joined."""
    operations = [b'{"op":"put"}', b"", b'{"a":1}']
    joined = b""
    for number, operation in enumerate(operations):
        own_salt = hmac_sha256(SALT, number.to_bytes(4, "big"))
        joined += hmac_sha256(own_salt, operation)
    assert proofs.ops_hash(SALT, operations) == hashlib.sha256(joined).digest()
    assert proofs.commitment(SALT, 2, operations[2]) == joined[64:]


def test_the_leaf_and_its_hash_and_the_mark():
    """The header, then `ops_hash` as the last key. RFC 6962 hashes a leaf after a zero byte. The
    mark is the first 16 hex digits."""
    header, ops_hash = b'{"seq":1', bytes.fromhex("ab" * 32)
    leaf = b'{"seq":1,"ops_hash":"' + b"ab" * 32 + b'"}'
    assert proofs.leaf_of(header, ops_hash) == leaf
    assert json.loads(leaf) == {"seq": 1, "ops_hash": "ab" * 32}
    assert proofs.leaf_hash(leaf) == hashlib.sha256(b"\0" + leaf).digest()
    assert proofs.mark_of(header, ops_hash) == hashlib.sha256(b"\0" + leaf).hexdigest()[:16]


def test_the_leaf_hash_of_an_empty_leaf_is_the_one_of_rfc_6962():
    """The well-known test vector of certificate transparency."""
    known = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert proofs.leaf_hash(b"").hex() == known


def operations_in(state: bytes) -> list[bytes]:
    """The exact bytes of each operation, found by a JSON reader that reports where each ends."""
    text = state.decode()
    at = text.index(',"ops":[') + len(',"ops":[')
    found = []
    while True:
        _, end = json.JSONDecoder().raw_decode(text, at)
        found.append(text[at:end].encode())
        if text[end] == "]":
            assert text[end:] == "]}"
            return found
        at = end + 1


@pytest.mark.parametrize("nasty", NASTY)
def test_an_entry_commits_to_its_exact_bytes_whatever_a_user_wrote(nasty):
    """The leaf can be cut from the stored bytes, and a reader of these bytes computes the same
    hash."""
    ops = [put(nasty.replace("\0", ""), **{nasty: nasty}), add(n=1), delete(), put("z", ops=nasty)]
    entry = entry_of(*ops)
    assert json.loads(entry.state)["ops"][0]["fields"] == {nasty: nasty}

    header = proofs.header_of(entry.state)
    assert list(json.loads(header + b"}"))[-1] == "time"
    assert entry.state == header + b',"ops":[' + b",".join(operations_in(entry.state)) + b"]}"
    assert entry.ops_hash == proofs.ops_hash(SALT, operations_in(entry.state))
    leaf = header + b',"ops_hash":"' + entry.ops_hash.hex().encode() + b'"}'
    assert entry.mark == hashlib.sha256(b"\0" + leaf).hexdigest()[:16]


@pytest.mark.parametrize("nasty", NASTY)
def test_a_header_may_quote_a_user(nasty):
    """A refusal names a field; the header still ends at the real key."""
    entry = entry_of(put(a=1), refusal=Refusal("stale", f"{nasty} has another value"))
    header = proofs.header_of(entry.state)
    assert list(json.loads(header + b"}"))[-1] == "refusal"
    assert json.loads(header + b"}")["refusal"]["detail"] == f"{nasty} has another value"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"reason": "x"},
        {"ops": []},
        {"a": 1, "ops": [1], "body": {"x": 1, "ops": 2}},
        ["a", {"b": 1, "body": 2}],
        None,
    ],
    ids=str,
)
def test_a_body_may_hold_ops_of_its_own(body):
    """The leaf of another kind of event is cut at `body`, for any content of the body."""
    head = (
        b'{"seq":1,"kind":"collection-defined","id":"00000000-0000-4000-8000-000000000001",'
        b'"received_at":"2026-11-23T09:00:00.000Z"'
    )
    state = head + b',"body":' + msgspec.json.encode(body) + b"}"
    assert proofs.header_of(state) == head
    entry = restored_entry(state, SALT)
    assert entry.ops_hash == proofs.ops_hash(SALT, [msgspec.json.encode(body)])


def test_bytes_without_ops_or_body_have_no_leaf():
    """Only a bug of ours, or a forged export, could produce such bytes."""
    with pytest.raises(ValueError, match="must end with"):
        proofs.header_of(b'{"seq":1}')


def test_bytes_that_were_written_past_the_service_have_a_leaf():
    """The leaf holds their hash, so any change is noticed. Every leaf fits into a bundle."""
    bad = b'{"seq": oh no'
    header = proofs.leaf_header_of(bad)
    assert header == b'{"unreadable":"%b"' % hashlib.sha256(bad).hexdigest().encode()
    most = proofs.HEADER_BYTES_MAX
    for length in range(most - 20, most + 20):
        state = b"x" * length + b',"ops":[]}'
        header = proofs.leaf_header_of(state)
        assert header == state[:length] or header.startswith(b'{"unreadable":"')
        assert len(proofs.leaf_of(header, bytes(32))) <= proofs.LEAF_BYTES_MAX
        # The projection reads only so many bytes, and must compute the same leaf.
        assert (header == state[:length]) == (b',"ops":' in state[:most])


def test_every_byte_of_an_event_is_covered():
    """Other values, another order, or another salt give another mark."""
    same = {"id": new_id()}
    marks = {
        entry.mark
        for entry in (
            entry_of(put(a=1), put(b=2), **same),
            entry_of(put(b=2), put(a=1), **same),
            entry_of(put(a=1), put(b=3), **same),
            entry_of(put(a=1, b=2), **same),
            entry_of(put(a=1), **same),
            entry_of(put(a=1.0), **same),
            entry_of(put(a=1), put(b=2), **same, salt=bytes(32)),
            entry_of(put(a=1), put(b=2), **same, seq=43),
            entry_of(put(a=1), put(b=2), **same, device=B),
            entry_of(put(a=1), put(b=2), **same, counter=8),
            entry_of(put(a=1), put(b=2), **same, counter=UNSET),
            entry_of(put(a=1), put(b=2), **same, base=40),
            entry_of(put(a=1), put(b=2), **same, made_at=0),
            entry_of(put(a=1), put(b=2), **same, received_at=1795424402482),
            entry_of(put(a=1), put(b=2), **same, time=1),
            entry_of(put(a=1), put(b=2), **same, guard="unchanged"),
            entry_of(put(a=1), put(b=2), **same, refusal=Refusal("stale", "")),
            entry_of(put(a=1), put(b=2), **same, refusal=Refusal("schema", "")),
        )
    }
    assert len(marks) == 18


def test_the_leaf_stays_small_though_the_event_is_large():
    """The leaf holds a thousand operations as one hash."""
    entry = entry_of(*[put(f"r{n}", text="x" * 1_000) for n in range(1_000)])
    leaf = proofs.leaf_of(proofs.header_of(entry.state), entry.ops_hash)
    assert len(leaf) < 500 < proofs.LEAF_BYTES_MAX < len(entry.state)


# -- The short form, and exported events ---------------------------------------------------------


@pytest.mark.parametrize("nasty", NASTY)
def test_the_short_form_is_the_event_but_for_its_ops(nasty):
    """The device has its operations already; a few bytes are enough to acknowledge them."""
    entry = entry_of(put("x", **{nasty: nasty}))
    whole, short = json.loads(entry.state), json.loads(short_form(entry.state))
    assert short == {name: value for name, value in whole.items() if name != "ops"}
    assert decode_event(short_form(entry.state)).ops == []


def test_the_short_form_has_the_ids_of_local_ids():
    """The push's answer may have been lost. A value that looks like a `local_id` is ignored."""
    named = {**put("id-7", "notes"), "local_id": "7"}
    short = json.loads(short_form(entry_of(named, put()).state))
    assert short["ids"] == {"notes": {"7": "id-7"}}
    assert decode_event(short_form(entry_of(named).state)).ids == short["ids"]
    for op in (put(local_id="7"), put(text='"local_id":"7"')):
        assert "ids" not in json.loads(short_form(entry_of(op).state))


@pytest.mark.parametrize(
    "entry",
    [
        entry_of(put(a=1), add("s", "stats", n=0.5), delete("gone")),
        entry_of({**put("x", é="\0"), "local_id": "7"}, counter=UNSET),
        entry_of({**put(), "expect": None}, refusal=Refusal("stale", "why"), guard="unchanged"),
    ],
    ids=["plain", "local_id", "refused"],
)
def test_an_exported_event_is_restored_whole(entry):
    """The bytes and the salt alone give the same entry with the same mark."""
    assert restored_entry(entry.state, entry.salt) == entry


@pytest.mark.parametrize(
    ("state", "salt"),
    [
        (b"", SALT),
        (b"[]", SALT),
        (b"{}", SALT),
        (b'{"seq":1}', SALT),
        (b'{"seq":1,"kind":"x","id":"x","received_at":"2026-11-23T09:00:00.000Z"}', SALT),
        (b'{"seq":1,"kind":"x","id":"x","received_at":"yesterday","body":{}}', SALT),
        (b'{"seq":1,"kind":"x","id":"\xff","received_at":"","body":{}}', SALT),
        (entry_of(put()).state, SALT[1:]),
        (entry_of(put()).state, b""),
        (entry_of(put()).state[:-1], SALT),
        (entry_of(put()).state + b" ", SALT),
        (entry_of(put()).state.replace(b'"ops":[', b'"ops": ['), SALT),
        (entry_of(put()).state.replace(b"}]}", b'}],"kind":"changeset"}'), SALT),
        (b'{"ops":[],"seq":1,"kind":"x","id":"","received_at":"2026-11-23T09:00:00Z"}', SALT),
        (b'{"seq":1,"ops":[],"kind":"x","id":"","received_at":"2026-11-23T09:00:00Z"}', SALT),
        (b'{"seq":1,"kind":"x","id":"","body":' + b"[" * 100_000, SALT),
    ],
    ids=range(16),
)
def test_invalid_events_are_not_restored(state, salt):
    """An export may be damaged, or forged so that its leaf does not cover all of it."""
    with pytest.raises(ValueError, match=r".+"):
        restored_entry(state, salt)
