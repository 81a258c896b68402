"""One golden event of each form. If a test fails here, you changed the stored form of the log.

Existing logs hold these bytes, devices keep marks of them, and checkpoints prove them. Keep
the constants as they are. A new form needs a new version of the wire format, and old forms must
stay readable for ever.
"""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest

from foldlog.domain import proofs
from foldlog.domain.access import (
    DeviceRegistered,
    DeviceRevokedBody,
    TokenGranted,
    TokenRevoked,
    access_entry,
    devices_of,
)
from foldlog.domain.changesets import decode_changesets
from foldlog.domain.erasure import erase_keys, record_erased_entry
from foldlog.domain.events import (
    Envelope,
    LogEntry,
    Refusal,
    changeset_entry,
    decode_event,
    restored_entry,
    short_form,
)
from foldlog.domain.limits import LIMITS
from foldlog.domain.lost_events import event_lost_entry
from foldlog.domain.merge import Record, Write, fold, pack_writes
from foldlog.domain.skipping import event_skipped_entry, skips_of

DEVICE = "5d0e0000-0000-4000-8000-00000000000a"
SALT = bytes(range(32))

SENT = b"""
 [{"id": "0198a3c2-0000-4000-8000-000000000001", "counter": 7, "base": 41, "guard": "unchanged",
   "made_at": "2026-11-23T10:00:00.1239+01:00",
   "ops": [{"op": "put", "id": "8f0c", "collection": "tasks", "unset": ["old"], "if_seq": 40,
            "fields": {"title": "Buy \\u006dilk \\ud83d\\ude00 \\"ops\\":[",
                       "n": [1, 1.0, 1e16, -0.0]}},
           {"op": "add", "collection": "stats", "local_id": "7", "fields": {"taps": 1}},
           {"op": "delete", "collection": "tasks", "id": "77aa", "expect": null}]},
  {"id": "0198a3c2-0000-4000-8000-000000000002", "base": 0, "made_at": "1969-12-31T23:59:59Z",
   "ops": [{"op": "put", "collection": "tasks", "id": "\\u0001/\\u007f"}]}]
"""

STORED = (
    b'{"seq":42,"kind":"changeset","verdict":"stored",'
    b'"id":"0198a3c2-0000-4000-8000-000000000001",'
    b'"device":"5d0e0000-0000-4000-8000-00000000000a","counter":7,"base":41,'
    b'"made_at":"2026-11-23T09:00:00.123Z",'
    b'"received_at":"2026-11-23T09:00:02.481Z","time":1795424402000,'
    b'"guard":"unchanged","ops":[{"op":"put","collection":"tasks","id":"8f0c",'
    b'"fields":{"title":"Buy milk \xf0\x9f\x98\x80 \\"ops\\":[","n":[1,1.0,1e16,-0.0]},'
    b'"unset":["old"],"if_seq":40},{"op":"add","collection":"stats",'
    b'"id":"0911dc11-96e9-5b56-8469-ae06e9e2a638","local_id":"7",'
    b'"fields":{"taps":1}},{"op":"delete","collection":"tasks","id":"77aa",'
    b'"expect":null}]}'
)
STORED_OPS_HASH = "c5162ce89fd8e5a3407e4a5fbf3b371c6673945b52a0a16a0357db1a483db9a8"
STORED_LEAF_HASH = "53205a155911917ef640033c7a6f47ab6edbd27963ab133b088984508045bcc9"
STORED_MARK = "53205a155911917e"

REFUSED = (
    b'{"seq":43,"kind":"changeset","verdict":"refused",'
    b'"id":"0198a3c2-0000-4000-8000-000000000002",'
    b'"device":"5d0e0000-0000-4000-8000-00000000000a","base":0,'
    b'"made_at":"1969-12-31T23:59:59.000Z",'
    b'"received_at":"2026-11-23T09:00:02.481Z","time":0,'
    b'"refusal":{"code":"stale","detail":"the field \','
    b'\\"ops\\":\' has another value"},"ops":[{"op":"put","collection":"tasks",'
    b'"id":"\\u0001/\x7f","fields":{}}]}'
)
REFUSED_OPS_HASH = "ec32e5cbb80dfc5d565688fd6f78e6badb5c2ab80065bc2f550183b36c822cee"
REFUSED_LEAF_HASH = "d29b5daedaa1b5b00a42872fa098dc9a07723cc3062e09c1be81d3c1f22c7964"
REFUSED_MARK = "d29b5daedaa1b5b0"

STRANGER = (
    b'{"seq":44,"kind":"invented-later","id":"0198a3c2-0000-4000-8000-000000000003",'
    b'"received_at":"2026-11-23T09:00:02.481Z","new_member":[1],"body":{"x":1,"ops":[]}}'
)
STRANGER_MARK = "6fe538ed0cf0cd69"


RECORD_ERASED = (
    b'{"seq":45,"kind":"record-erased","id":"0198a3c2-0000-4000-8000-000000000004",'
    b'"received_at":"2026-11-23T09:00:02.481Z",'
    b'"body":{"collection":"tasks","id":"8f0c","reason":"request \xc3\xa4 7","by":"dpo"}}'
)
RECORD_ERASED_MARK = "7c982a133c5b1a93"

EVENT_SKIPPED = (
    b'{"seq":46,"kind":"event-skipped","id":"0198a3c2-0000-4000-8000-000000000005",'
    b'"received_at":"2026-11-23T09:00:02.481Z",'
    b'"body":{"seq":44,"reason":"ticket 7","by":"on call"}}'
)

EVENT_LOST = (
    b'{"seq":46,"kind":"event-lost","id":"0198a3c2-0000-4000-8000-000000000005",'
    b'"received_at":"2026-11-23T09:00:02.481Z",'
    b'"body":{"reason":"missing in the log at a fork"}}'
)

_ACCESS = (
    b'{"seq":47,"kind":"%b","id":"0198a3c2-0000-4000-8000-000000000006",'
    b'"received_at":"2026-11-23T09:00:02.481Z","body":{%b}}'
)
_TOKEN = b'"token":"0198a3c2-9d20-4f6b-8c11-5a4b3c2d1e0f"'
_DEVICE = b'"device":"5d0e9d0c-6d8e-4a3e-8f57-0d1f2b3c4d5e"'
ACCESS = [
    (
        DeviceRegistered("5d0e9d0c-6d8e-4a3e-8f57-0d1f2b3c4d5e", "phone", "ada"),
        _ACCESS % (b"device-registered", _DEVICE + b',"name":"phone","by":"ada"'),
    ),
    (
        DeviceRegistered("5d0e9d0c-6d8e-4a3e-8f57-0d1f2b3c4d5e"),
        _ACCESS % (b"device-registered", _DEVICE),
    ),
    (
        DeviceRevokedBody("5d0e9d0c-6d8e-4a3e-8f57-0d1f2b3c4d5e", "stolen", "ada"),
        _ACCESS % (b"device-revoked", _DEVICE + b',"reason":"stolen","by":"ada"'),
    ),
    (
        TokenGranted(
            "0198a3c2-9d20-4f6b-8c11-5a4b3c2d1e0f",
            "device",
            "5d0e9d0c-6d8e-4a3e-8f57-0d1f2b3c4d5e",
            "phone",
            "2027-01-01T00:00:00.000Z",
            "ada",
        ),
        _ACCESS
        % (
            b"token-granted",
            _TOKEN + b',"role":"device",' + _DEVICE + b',"name":"phone",'
            b'"expires_at":"2027-01-01T00:00:00.000Z","by":"ada"',
        ),
    ),
    (
        TokenGranted("0198a3c2-9d20-4f6b-8c11-5a4b3c2d1e0f", "reader"),
        _ACCESS % (b"token-granted", _TOKEN + b',"role":"reader"'),
    ),
    (
        TokenGranted("0198a3c2-9d20-4f6b-8c11-5a4b3c2d1e0f", "reader", digest="ab" * 32),
        _ACCESS % (b"token-granted", _TOKEN + b',"role":"reader","digest":"' + b"ab" * 32 + b'"'),
    ),
    (
        TokenRevoked("0198a3c2-9d20-4f6b-8c11-5a4b3c2d1e0f", "lost", "ada"),
        _ACCESS % (b"token-revoked", _TOKEN + b',"reason":"lost","by":"ada"'),
    ),
]

#: `STORED` after this erasure, and its salt
STORED_ERASED = STORED.replace(
    STORED[STORED.index(b',"fields":{"title"') : STORED.index(b'},{"op":"add"')],
    b',"erased":"220f64d4d0985765174d901c46e3086c4825dad2961499daf9af6178e375e07e"',
)
STORED_ERASED_SALT = bytes.fromhex(
    "01"
    "0000000000000000000000000000000000000000000000000000000000000000"
    "99411f24bfa9ee8e144e132c46b3b7d1f6d6bfbe2b82ab47b4963e43bfe8bdb6"
    "f96d53c4967667e4efbc5caf46406af31d4065a9a2c3f25fdeb1e056f3334114"
)


def made() -> tuple[LogEntry, LogEntry]:
    stored, refused = decode_changesets(SENT, DEVICE, LIMITS)

    def entry(seq, changeset, time, refusal):
        return changeset_entry(
            changeset,
            seq=seq,
            device=DEVICE,
            received_at=1795424402481,
            time=time,
            refusal=refusal,
            salt=SALT,
        )

    return (
        entry(42, stored, 1795424402000, msgspec.UNSET),
        entry(43, refused, 0, Refusal("stale", "the field ',\"ops\":' has another value")),
    )


GOLDEN = [
    pytest.param(0, STORED, STORED_OPS_HASH, STORED_LEAF_HASH, STORED_MARK, id="stored"),
    pytest.param(1, REFUSED, REFUSED_OPS_HASH, REFUSED_LEAF_HASH, REFUSED_MARK, id="refused"),
]


@pytest.mark.parametrize(("which", "state", "ops_hash", "leaf_hash", "mark"), GOLDEN)
def test_the_same_is_still_written(which, state, ops_hash, leaf_hash, mark):
    """If this fails, you changed the bytes that are written to the log."""
    entry = made()[which]
    assert entry.state == state
    assert entry.ops_hash.hex() == ops_hash
    leaf = proofs.leaf_of(proofs.header_of(entry.state), entry.ops_hash)
    assert proofs.leaf_hash(leaf).hex() == leaf_hash
    assert entry.mark == mark


@pytest.mark.parametrize(("which", "state", "ops_hash", "leaf_hash", "mark"), GOLDEN)
def test_stored_bytes_are_still_the_same_entry(which, state, ops_hash, leaf_hash, mark):
    """If this fails, loading older exports and backups fails."""
    entry = restored_entry(state, SALT)
    assert entry == made()[which]
    leaf = state[: state.index(b',"ops":[{')] + b',"ops_hash":"' + ops_hash.encode() + b'"}'
    assert hashlib.sha256(b"\0" + leaf).hexdigest() == leaf_hash
    assert leaf_hash.startswith(mark)


def test_a_stored_changeset_is_still_read():
    """Every member has its place and its value."""
    event = decode_event(STORED)
    assert (event.seq, event.kind, event.verdict) == (42, "changeset", "stored")
    assert event.id == "0198a3c2-0000-4000-8000-000000000001"
    assert (event.device, event.counter, event.base) == (DEVICE, 7, 41)
    assert event.made_at == "2026-11-23T09:00:00.123Z"
    assert (event.received_at, event.time) == ("2026-11-23T09:00:02.481Z", 1795424402000)
    assert event.guard == "unchanged"
    put, add, delete = event.ops
    assert put.fields["title"] == 'Buy milk \U0001f600 "ops":['
    assert [repr(n) for n in put.fields["n"]] == ["1", "1.0", "1e+16", "-0.0"]
    assert (put.unset, put.if_seq) == (["old"], 40)
    assert (add.local_id, add.fields) == ("7", {"taps": 1})
    assert (delete.key, delete.expect) == (("tasks", "77aa"), None)


def test_a_refused_changeset_is_still_read():
    """A refused changeset has no effect on records."""
    event = decode_event(REFUSED)
    assert (event.verdict, event.refusal.code) == ("refused", "stale")
    assert event.counter is msgspec.UNSET
    records = {}
    assert fold(records, event) == []
    assert records == {}


def test_an_event_of_a_later_version_is_kept_and_passed_over():
    """The event has a kind and members that this code does not know. Its leaf is cut in the same
    way."""
    event = decode_event(STRANGER)
    assert (event.kind, event.body) == ("invented-later", {"x": 1, "ops": []})
    assert fold({}, event) == []
    assert restored_entry(STRANGER, SALT).mark == STRANGER_MARK


def test_the_short_form():
    """A device's own changesets have this form."""
    header = STORED[: STORED.index(b',"ops":[{')]
    id = json.loads(STORED)["ops"][1]["id"]
    assert short_form(STORED) == header + b',"ids":{"stats":{"7":"%b"}}}' % id.encode()
    assert short_form(REFUSED) == REFUSED[: REFUSED.index(b',"ops":[{')] + b"}"


def test_a_record_as_it_is_kept():
    """Snapshots and the master table hold records with their writes. They must always load."""
    raw = (
        b'{"collection":"tasks","id":"r","fields":{"a":1},"writes":{"a":[3,"A",5,2]},'
        b'"deleted":[2,null,4,0],"is_deleted":false,"seq":3,"last_modified":"x","created_seq":3,'
        b'"touched_seq":4,"touched_by":"B","touched_seq_other":3}'
    )
    record = msgspec.json.decode(raw, type=Record)
    assert record.writes == {"a": Write(3, "A", 5, 2)}
    assert record.deleted == Write(2, None, 4)
    assert msgspec.json.encode(record) == raw
    assert msgspec.json.encode(pack_writes(record.writes)) == b'[[3,"A",5,2,["a"]]]'


def test_an_erasure_is_still_written_and_read():
    """The event of an erasure, and an event with erased operations: both must stay readable."""
    entry = record_erased_entry(
        Envelope(45, "0198a3c2-0000-4000-8000-000000000004", 1795424402481, SALT),
        ("tasks", "8f0c"),
        reason="request ä 7",
        by="dpo",
    )
    assert (entry.state, entry.mark) == (RECORD_ERASED, RECORD_ERASED_MARK)
    assert restored_entry(RECORD_ERASED, SALT) == entry
    records = {}
    fold(records, decode_event(RECORD_ERASED))
    [record] = records.values()
    assert record.deleted == Write(45, None, 1795424402481)


def test_an_erased_operation_is_still_written_and_read():
    """The bytes, the salts in the place of the salt, and the unchanged leaf."""
    assert erase_keys(STORED, SALT, {("tasks", "8f0c")}) == (
        STORED_ERASED,
        STORED_ERASED_SALT,
    )
    entry = restored_entry(STORED_ERASED, STORED_ERASED_SALT)
    assert (entry.ops_hash.hex(), entry.mark) == (STORED_OPS_HASH, STORED_MARK)
    header = STORED[: STORED.index(b',"ops":[{')]
    assert short_form(STORED_ERASED).startswith(header + b',"ids":{')
    assert short_form(STORED_ERASED).endswith(b',"erased":[0]}')


@pytest.mark.parametrize(
    "salt",
    [
        SALT,
        STORED_ERASED_SALT[:-32],
        STORED_ERASED_SALT + bytes(32),
        b"\2" + STORED_ERASED_SALT[1:],
        STORED_ERASED_SALT[:1] + SALT + STORED_ERASED_SALT[33:],
        STORED_ERASED_SALT[:33] + bytes(32) + STORED_ERASED_SALT[65:],
    ],
    ids=["the old one", "one less", "one more", "another tag", "of an erased one", "one lost"],
)
def test_salts_that_do_not_belong_to_an_event_are_refused(salt):
    """An import must refuse an event whose erased operations could be guessed."""
    with pytest.raises(ValueError):
        restored_entry(STORED_ERASED, salt)


@pytest.mark.parametrize(("body", "state"), ACCESS)
def test_events_of_access(body, state):
    entry = access_entry(
        Envelope(47, "0198a3c2-0000-4000-8000-000000000006", 1795424402481, SALT), body
    )
    assert entry.state == state
    assert restored_entry(state, SALT) == entry
    noted = devices_of([entry])
    assert [device.device for device in noted] == [body.device for _ in noted]
    assert bool(noted) is isinstance(body, DeviceRegistered | DeviceRevokedBody)


def test_an_event_that_was_skipped():
    entry = event_skipped_entry(
        Envelope(46, "0198a3c2-0000-4000-8000-000000000005", 1795424402481, SALT),
        44,
        reason="ticket 7",
        by="on call",
    )
    assert entry.state == EVENT_SKIPPED
    assert decode_event(entry.state).skipped_seq == 44
    assert skips_of([entry]) == [(44, 46)]
    assert restored_entry(entry.state, SALT) == entry


def test_an_event_that_was_lost():
    """It changes no record."""
    envelope = Envelope(46, "0198a3c2-0000-4000-8000-000000000005", 1795424402481, SALT)
    entry = event_lost_entry(envelope, "missing in the log at a fork")
    assert entry.state == EVENT_LOST
    assert restored_entry(entry.state, SALT) == entry
    records = {}
    fold(records, decode_event(entry.state))
    assert records == {}
