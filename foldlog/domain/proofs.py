"""What makes the log provable: commitments, leaves, marks.

The formats are those of RFC 6962 section 2.1 (leaf hash) and DESIGN section 7 (commitments).
They are stored from the first event on, because a log cannot be hashed anew afterwards.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable

SALT_BYTES = 32
#: What stands in the salt's place once an operation was erased: this byte, then the salt of each
#: operation by itself, zeros for an erased one. So it is never as long as a salt.
SALTS_TAG = b"\x01"
NO_SALT = bytes(SALT_BYTES)
MARK_LENGTH = 16  #: hex digits of a leaf hash that a cursor carries
#: An entry bundle of C2SP tlog-tiles counts an entry's bytes with 16 bits.
LEAF_BYTES_MAX = 65_535
#: ... of which `,"ops_hash":"<hex>"}` come after the header
HEADER_BYTES_MAX = LEAF_BYTES_MAX - 78

_LAST_KEY = re.compile(rb',"(?:ops|body)":')
_ERASED = re.compile(rb',"erased":"([0-9a-f]{64})"\}\Z')


def derived_salt(salt: bytes, index: int) -> bytes:
    """The salt of one operation of an event, counted from 0."""
    return hmac.digest(salt, index.to_bytes(4, "big"), "sha256")


def commitment(salt: bytes, index: int, operation: bytes) -> bytes:
    """Commits to one operation's exact bytes; tells nothing about them to who lacks the salt.

    Each operation has a salt of its own, derived from the event's, so that one can be erased and
    the others still be opened.
    """
    return hmac.digest(derived_salt(salt, index), operation, "sha256")


def erased_form(operation: bytes, commitment: bytes) -> bytes:
    """What is left of an operation, given without its values: `{"op", "collection", "id"}`."""
    assert operation.endswith(b'"}')
    return b'%b,"erased":"%b"}' % (operation[:-1], commitment.hex().encode())


def salts_of(salt: bytes, count: int) -> list[bytes | None]:
    """The salt of each operation of an event; `None` for one that was erased.

    Raises `ValueError` if these are no salts of so many operations.
    """
    if len(salt) == SALT_BYTES:
        return [derived_salt(salt, index) for index in range(count)]
    if not salt.startswith(SALTS_TAG) or len(salt) != len(SALTS_TAG) + count * SALT_BYTES:
        raise ValueError("neither an event's salt nor those of its operations")
    starts = range(len(SALTS_TAG), len(salt), SALT_BYTES)
    parts = (salt[start : start + SALT_BYTES] for start in starts)
    return [None if part == NO_SALT else part for part in parts]


def commitments(salt: bytes, operations: Iterable[bytes]) -> list[bytes]:
    """The commitments of an event's operations (or its body), erased ones too, in order.

    The one place that knows how they come from what is stored. An erased operation states its
    own; whether that is the one that was made, only the leaf can tell. Raises `ValueError` if the
    salts and the operations do not belong together.
    """
    if len(salt) == SALT_BYTES:
        return [commitment(salt, index, op) for index, op in enumerate(operations)]
    operations = list(operations)
    return [
        _stated(operation) if own is None else hmac.digest(own, operation, "sha256")
        for own, operation in zip(salts_of(salt, len(operations)), operations, strict=True)
    ]


def _stated(operation: bytes) -> bytes:
    found = _ERASED.search(operation)
    if found is None:
        raise ValueError("an operation without a salt is an erased one, and states its commitment")
    return bytes.fromhex(found[1].decode())


def ops_hash(salt: bytes, operations: Iterable[bytes]) -> bytes:
    """SHA-256 over the commitments of an event's operations, in order."""
    return hashlib.sha256(b"".join(commitments(salt, operations))).digest()


def header_of(state: bytes) -> bytes:
    """The bytes of a stored event up to its `ops` or `body`, which are never rewritten.

    A quote inside a JSON string is escaped, and no member of the header is an object with such a
    key, so the first match of either is the key itself; a body may well hold `ops` of its own.
    """
    found = _LAST_KEY.search(state)
    if found is None:
        raise ValueError("an event ends with ops or a body")
    return state[: found.start()]


def leaf_header_of(state: bytes) -> bytes:
    """The header as it is in the event's leaf, whatever was written past the service.

    Of bytes that no header can be cut from, or none that a leaf has room for, it is their hash.
    """
    try:
        return header_of(state[:HEADER_BYTES_MAX])
    except ValueError:
        return unreadable_header(hashlib.sha256(state).digest())


def unreadable_header(hash_of_state: bytes) -> bytes:
    return b'{"unreadable":"%b"' % hash_of_state.hex().encode()


def leaf_of(header: bytes, hash_of_ops: bytes) -> bytes:
    """The leaf: the event with `ops_hash` in the place of its last key."""
    leaf = header + b',"ops_hash":"' + hash_of_ops.hex().encode() + b'"}'
    assert len(leaf) <= LEAF_BYTES_MAX
    return leaf


def leaf_hash(leaf: bytes) -> bytes:
    """RFC 6962 section 2.1: a leaf is hashed with a zero byte before it."""
    return hashlib.sha256(b"\0" + leaf).digest()


def mark_of(header: bytes, hash_of_ops: bytes) -> str:
    """What a cursor carries beside its seq, to notice that the log is another one."""
    return leaf_hash(leaf_of(header, hash_of_ops)).hex()[:MARK_LENGTH]
