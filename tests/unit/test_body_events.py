"""Events with a body: their bytes, and their commitment."""

from __future__ import annotations

import hashlib
import hmac

from foldlog.domain.events import Envelope, body_entry, decode_event, restored_entry

SALT = bytes(range(32))
# A golden event, like those of test_stored_form.py: keep it as it is.
STORED = (
    b'{"seq":3,"kind":"something-else","id":"0198a3c2-0000-4000-8000-000000000001",'
    b'"received_at":"2026-11-23T09:00:02.481Z","body":{"ops":[1],"why":"\xc3\xa4"}}'
)


def entry():
    return body_entry(
        Envelope(3, "0198a3c2-0000-4000-8000-000000000001", 1_795_424_402_481, SALT),
        "something-else",
        {"ops": [1], "why": "ä"},
    )


def test_its_bytes_are_as_stored_for_ever():
    assert entry().state == STORED
    assert entry().collections is None and entry().device is None


def test_its_body_is_committed_to_as_one_operation():
    salt = hmac.digest(SALT, bytes(4), "sha256")
    commitment = hmac.digest(salt, b'{"ops":[1],"why":"\xc3\xa4"}', "sha256")
    assert entry().ops_hash == hashlib.sha256(commitment).digest()


def test_an_export_restores_the_same_entry():
    assert restored_entry(STORED, SALT) == entry()


def test_readers_decode_it_and_find_no_operations():
    event = decode_event(STORED)
    assert (event.kind, event.body, event.ops) == ("something-else", {"ops": [1], "why": "ä"}, [])
