"""Commitments, leaves and marks: the bytes that make the log provable.

The formats are those of RFC 6962 section 2.1 (leaf hash) and docs/explanation/proofs.md
(commitments). They are stored from the first event on, because a log cannot be hashed again later.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable

SALT_BYTES = 32
#: After an erasure, the salt's column holds this byte and then the salt of each operation (zeros
#: for an erased one). Its length always differs from the length of a salt.
SALTS_TAG = b"\x01"
NO_SALT = bytes(SALT_BYTES)
MARK_LENGTH = 16  #: the hex digits of a leaf hash that a cursor carries
#: An entry bundle of C2SP tlog-tiles has 16 bits for the length of an entry.
LEAF_BYTES_MAX = 65_535
#: the header is followed by `,"ops_hash":"<hex>"}`
HEADER_BYTES_MAX = LEAF_BYTES_MAX - 78

_LAST_KEY = re.compile(rb',"(?:ops|body)":')
_ERASED = re.compile(rb',"erased":"([0-9a-f]{64})"\}\Z')


def derived_salt(salt: bytes, index: int) -> bytes:
    """The salt of one operation of an event. `index` counts from 0."""
    return hmac.digest(salt, index.to_bytes(4, "big"), "sha256")


def commitment(salt: bytes, index: int, operation: bytes) -> bytes:
    """Commits to the exact bytes of one operation. The salt is needed to test a guess of the bytes.

    The operation's salt is derived from the event's salt. One operation can be erased this way,
    while the others can still be verified.
    """
    return hmac.digest(derived_salt(salt, index), operation, "sha256")


def erased_form(operation: bytes, commitment: bytes) -> bytes:
    """The form of an erased operation. `operation` has no values: `{"op", "collection", "id"}`."""
    assert operation.endswith(b'"}')
    return b'%b,"erased":"%b"}' % (operation[:-1], commitment.hex().encode())


def salts_of(salt: bytes, count: int) -> list[bytes | None]:
    """The salt of each operation of an event; `None` for an erased one.

    Raises `ValueError` if the number of salts differs from `count`.
    """
    if len(salt) == SALT_BYTES:
        return [derived_salt(salt, index) for index in range(count)]
    if not salt.startswith(SALTS_TAG) or len(salt) != len(SALTS_TAG) + count * SALT_BYTES:
        raise ValueError("the salts belong to another number of operations")
    starts = range(len(SALTS_TAG), len(salt), SALT_BYTES)
    parts = (salt[start : start + SALT_BYTES] for start in starts)
    return [None if part == NO_SALT else part for part in parts]


def commitments(salt: bytes, operations: Iterable[bytes]) -> list[bytes]:
    """The commitments of an event's operations (or its body), in order, erased ones included.

    Only this function knows how to derive them from the stored bytes. An erased operation states
    its own commitment; comparing the leaf proves that it is the original one. Raises `ValueError`
    if the salts belong to other operations.
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
        raise ValueError("an operation without a salt must be erased and state its commitment")
    return bytes.fromhex(found[1].decode())


def ops_hash(salt: bytes, operations: Iterable[bytes]) -> bytes:
    """SHA-256 over the commitments of an event's operations, in order."""
    return hashlib.sha256(b"".join(commitments(salt, operations))).digest()


def header_of(state: bytes) -> bytes:
    """The bytes of a stored event before its `ops` or `body`. An erasure keeps them.

    The first match is always the key itself: a quote inside a JSON string is escaped, and the
    header has no object with such a key. A body may contain `ops`, but after the first match.
    """
    found = _LAST_KEY.search(state)
    if found is None:
        raise ValueError("an event must end with ops or a body")
    return state[: found.start()]


def leaf_header_of(state: bytes) -> bytes:
    """The header in the event's leaf, for any stored bytes.

    For bytes without a header, or with one that is too long for a leaf, it is built from their
    hash.
    """
    try:
        return header_of(state[:HEADER_BYTES_MAX])
    except ValueError:
        return unreadable_header(hashlib.sha256(state).digest())


def unreadable_header(hash_of_state: bytes) -> bytes:
    return b'{"unreadable":"%b"' % hash_of_state.hex().encode()


def leaf_of(header: bytes, hash_of_ops: bytes) -> bytes:
    """The leaf of an event: the header, and `ops_hash` in the place of the last key."""
    leaf = header + b',"ops_hash":"' + hash_of_ops.hex().encode() + b'"}'
    assert len(leaf) <= LEAF_BYTES_MAX
    return leaf


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf. A zero byte comes before the leaf: RFC 6962 section 2.1."""
    return hashlib.sha256(b"\0" + leaf).digest()


def mark_of(header: bytes, hash_of_ops: bytes) -> str:
    """The mark that a cursor carries beside its seq, to detect that the log was replaced."""
    return leaf_hash(leaf_of(header, hash_of_ops)).hex()[:MARK_LENGTH]
