"""Forged events with the leaf of a real event: each verifier refuses each of them.

The leaf covers the header and the hash of the commitments. The forger has every byte and salt of
the log, as a server has, and keeps the leaf while it changes what readers fold.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from foldlog.domain import proofs
from foldlog.domain.audit import Evidence, LogAudit, WrongEvent
from foldlog.domain.changesets import Key
from foldlog.domain.erasure import erase_keys, record_erased_entry
from foldlog.domain.events import Envelope, LogEntry, restored_entry
from tests.helpers import delete, new_id, put
from tests.unit.test_proofs import SALT, entry_of

R: Key = ("tasks", "r")
NO_SALTS = proofs.SALTS_TAG + proofs.NO_SALT


def small_verifier():
    """The module docs/reference/verify_log.py, which shares no code with Foldlog."""
    path = Path(__file__).parents[2] / "docs/reference/verify_log.py"
    spec = importlib.util.spec_from_file_location("verify_log", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = small_verifier()


def real_changeset(*ops) -> LogEntry:
    return entry_of(*(ops or [put(secret=1)]), seq=1, base=0)


def real_erasure() -> LogEntry:
    envelope = Envelope(1, new_id(), 1795424402481, SALT)
    return record_erased_entry(envelope, R, reason="asked to", by=None)


def with_last_key(entry: LogEntry, last: bytes) -> bytes:
    return proofs.header_of(entry.state) + b"," + last + b"}"


def stated(commitment: bytes) -> bytes:
    return b'"erased":"%b"' % commitment.hex().encode()


def forged_changesets() -> dict[str, tuple[LogEntry, bytes, bytes]]:
    """Returns {the forgery: (the real event, the forged bytes, the forged salt)}."""
    real = real_changeset()
    own = stated(proofs.commitment(SALT, 0, proofs_operation(real)))
    start = b'{"op":"put","collection":"tasks","id":"r"'
    operations = {
        "the commitment among the fields": start + b',"fields":{"secret":2,' + own + b"}}",
        "the commitment in a nested value": start + b',"fields":{"x":{"y":1,' + own + b"}}}",
        "an erased operation as a value": start + b',"fields":{"x":' + start + b"," + own + b"}}}",
        "fields beside the commitment": start + b',"fields":{"secret":2},' + own + b"}",
        "a guard beside the commitment": start + b',"expect":null,' + own + b"}",
        "the commitment before the fields": start + b"," + own + b',"fields":{}}',
        "a second commitment": start + b"," + stated(bytes(32)) + b"," + own + b"}",
        "bytes after the commitment": start + b"," + own + b" }",
        "no record": b'{"op":"put",' + own + b"}",
        "members in another order": b'{"collection":"tasks","op":"put","id":"r",' + own + b"}",
        "the commitment in capitals": start
        + b","
        + own.upper().replace(b"ERASED", b"erased")
        + b"}",
        "a short commitment": start + b"," + own[:-2] + b'"}',
    }
    forged = {
        name: (real, with_last_key(real, b'"ops":[%b]' % operation), NO_SALTS)
        for name, operation in operations.items()
    }
    as_body = with_last_key(real, b'"body":' + proofs_operation(real))
    forged["a changeset with its operation as the body"] = (real, as_body, SALT)
    return forged


def proofs_operation(entry: LogEntry) -> bytes:
    """The bytes of the only operation of a changeset."""
    return entry.state[len(proofs.header_of(entry.state)) + len(b',"ops":[') : -2]


def forged_bodies() -> dict[str, tuple[LogEntry, bytes, bytes]]:
    real = real_erasure()
    body = real.state[len(proofs.header_of(real.state)) + len(b',"body":') : -1]
    own = stated(proofs.commitment(SALT, 0, body))
    other = b'"body":{"collection":"tasks","id":"other","reason":"forged",%b}' % own
    in_form = b'"body":{"op":"x","collection":"tasks","id":"other",%b}' % own
    return {
        "another record, by a body that passes as erased": (
            real,
            with_last_key(real, other),
            NO_SALTS,
        ),
        "a body in the form of an erased operation": (real, with_last_key(real, in_form), NO_SALTS),
        "its own salt instead of the event's": (
            real,
            real.state,
            proofs.SALTS_TAG + proofs.derived_salt(SALT, 0),
        ),
        "the body as an operation": (real, with_last_key(real, b'"ops":[%b]' % body), SALT),
    }


FORGED = {**forged_changesets(), **forged_bodies()}


@pytest.mark.parametrize(("before", "after"), [(b"", b" "), (b"", b',"n":1}'), (b'{"x":', b"}")])
def test_only_the_whole_form_states_a_commitment(before, after):
    """Bytes before or after an erased operation would be read, and no hash would cover them."""
    erased = proofs.erased_form(b'{"op":"put","collection":"tasks","id":"r"}', bytes(32))
    assert proofs.commitments(NO_SALTS, [erased]) == [bytes(32)]
    with pytest.raises(ValueError, match="must be erased"):
        proofs.commitments(NO_SALTS, [before + erased + after])


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_event_with_the_leaf_of_a_real_one_is_refused(forgery):
    """Values that the leaf does not cover would be read as the log's own, and a changeset without
    operations would change no record: `verify` and the import refuse the event."""
    real, state, salt = FORGED[forgery]
    assert (state, salt) != (real.state, real.salt)
    assert proofs.header_of(state) == proofs.header_of(real.state)
    with pytest.raises(WrongEvent):
        LogAudit().check([Evidence(state, salt)])
    with pytest.raises(ValueError, match=r".+"):
        restored_entry(state, salt)
    with pytest.raises((SystemExit, AssertionError)):
        leaf = small_leaf(state, salt)
        assert leaf == proofs.leaf_hash(real.leaf), "another leaf is as good as refused"


def small_leaf(state: bytes, salt: bytes) -> bytes:
    line = b'{"salt":"%b","event":%b}' % (salt.hex().encode(), state)
    return SMALL.leaf_of(1, line, {}, set())


@pytest.mark.parametrize(
    "ops",
    [
        [put(secret=1)],
        [put("é\u2028\\\"'{}[],", secret=1), delete("s")],
        [delete(), put("s", "n", x={"erased": "0" * 64}), put("\x01", x=1)],
    ],
    ids=["one", "nasty", "three"],
)
def test_every_real_erasure_keeps_its_leaf_for_each_verifier(ops):
    """Any name that a record may have is read back from the form of an erased operation."""
    real = real_changeset(*ops)
    for op in ops:
        erased = erase_keys(real.state, real.salt, {(op["collection"], op["id"])})
        assert erased is not None
        state, salt = erased
        audit = LogAudit()
        audit.check([Evidence(state, salt, real.ops_hash)])
        assert not audit.is_settled, "no event has erased the record yet"
        assert restored_entry(state, salt).leaf == real.leaf
        assert small_leaf(state, salt) == proofs.leaf_hash(real.leaf)
