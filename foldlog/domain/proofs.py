"""Computes commitments, leaves and marks: the hashes with which readers can verify the log.

The hash of a leaf is that of RFC 6962 section 2.1. Commitments are described in
docs/explanation/proofs.md. They are stored with each event from the first event on, because adding
them to a log later is impossible.
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
#: the bytes that `erased_form` adds: `,"erased":"<64 hex digits>"`
ERASED_MEMBER_BYTES = 76
#: An entry bundle of C2SP tlog-tiles has 16 bits for the length of an entry.
LEAF_BYTES_MAX = 65_535
#: the header is followed by `,"ops_hash":"<hex>"}`
HEADER_BYTES_MAX = LEAF_BYTES_MAX - 78

_LAST_KEY = re.compile(rb',"(?:ops|body)":')
#: The whole form of an erased operation. A commitment elsewhere, for example in a field, must not
#: pass as erased: the values beside it would be forged, and no hash would cover them.
_ERASED = re.compile(
    rb'\{"op":"[a-z]+","collection":"[^"\\]*","id":"(?:[^"\\]|\\.)*","erased":"([0-9a-f]{64})"\}',
    re.DOTALL,
)


def derived_salt(salt: bytes, index: int) -> bytes:
    """Returns the salt of one operation, derived from the salt of its event. `index` is the
    operation's position in the event, counted from 0."""
    return hmac.digest(salt, index.to_bytes(4, "big"), "sha256")


def commitment(salt: bytes, index: int, operation: bytes) -> bytes:
    """Returns the commitment of one operation: a hash of its exact bytes with its own salt. Only a
    reader that knows the salt can guess the bytes and test whether the guess is right.

    The operation's salt is derived from the event's salt. For this reason one operation of an event
    can be erased while the other operations can still be verified.
    """
    return hmac.digest(derived_salt(salt, index), operation, "sha256")


def erased_form(operation: bytes, commitment: bytes) -> bytes:
    """Returns the bytes that replace an erased operation. `operation` is the operation with only
    its `op`, `collection` and `id`; the result has the commitment as a fourth member, `erased`."""
    assert operation.endswith(b'"}')
    return b'%b,"erased":"%b"}' % (operation[:-1], commitment.hex().encode())


def salts_of(salt: bytes, count: int) -> list[bytes | None]:
    """Returns a list with the salt of each of the `count` operations of an event. The list has
    `None` in the place of an erased operation. `salt` is the stored salt of the event, or the
    stored salts of its operations after an erasure.

    Raises `ValueError` if the number of stored salts differs from `count`.
    """
    if len(salt) == SALT_BYTES:
        return [derived_salt(salt, index) for index in range(count)]
    if not salt.startswith(SALTS_TAG) or len(salt) != len(SALTS_TAG) + count * SALT_BYTES:
        raise ValueError("the salts belong to another number of operations")
    starts = range(len(SALTS_TAG), len(salt), SALT_BYTES)
    parts = (salt[start : start + SALT_BYTES] for start in starts)
    return [None if part == NO_SALT else part for part in parts]


def commitments(salt: bytes, operations: Iterable[bytes]) -> list[bytes]:
    """Returns a list of the commitments of an event's operations, in order. If the event has a
    body, pass the body as the only operation.

    The commitment of an erased operation is copied from the operation's member `erased`, and it is
    not verified here. To verify it, compare the event's leaf with the Merkle tree. Raises
    `ValueError` if the stored salts belong to other operations, or if an operation without a salt
    has another form than an erased operation.
    """
    if len(salt) == SALT_BYTES:
        return [commitment(salt, index, op) for index, op in enumerate(operations)]
    operations = list(operations)
    return [
        _stated(operation) if own is None else hmac.digest(own, operation, "sha256")
        for own, operation in zip(salts_of(salt, len(operations)), operations, strict=True)
    ]


def _stated(operation: bytes) -> bytes:
    found = _ERASED.fullmatch(operation)
    if found is None:
        raise ValueError("an operation without a salt must be erased and state its commitment")
    return bytes.fromhex(found[1].decode())


def ops_hash(salt: bytes, operations: Iterable[bytes]) -> bytes:
    """Joins the commitments of an event's operations in order, and returns the SHA-256 of the
    result."""
    return hashlib.sha256(b"".join(commitments(salt, operations))).digest()


def header_of(state: bytes) -> bytes:
    """Returns the header of a stored event: its bytes before the key `ops` or `body`. An erasure
    leaves the header unchanged. Raises `ValueError` if both keys are missing.

    The first match of `,"ops":` or `,"body":` is always the key itself: a quote inside a JSON
    string is escaped, and objects in the header lack such keys.
    """
    found = _LAST_KEY.search(state)
    if found is None:
        raise ValueError("an event must end with ops or a body")
    return state[: found.start()]


def leaf_header_of(state: bytes) -> bytes:
    """Returns the header that the leaf of an event contains.

    Stored bytes may be damaged. If they lack a header, or if the header is too long for a leaf, the
    function returns a replacement that contains the SHA-256 of the bytes.
    """
    try:
        return header_of(state[:HEADER_BYTES_MAX])
    except ValueError:
        return unreadable_header(hashlib.sha256(state).digest())


def unreadable_header(hash_of_state: bytes) -> bytes:
    return b'{"unreadable":"%b"' % hash_of_state.hex().encode()


def leaf_of(header: bytes, hash_of_ops: bytes) -> bytes:
    """Returns the leaf of an event in the Merkle tree: its header, followed by `ops_hash` in the
    place of `ops` or `body`."""
    leaf = header + b',"ops_hash":"' + hash_of_ops.hex().encode() + b'"}'
    assert len(leaf) <= LEAF_BYTES_MAX
    return leaf


def leaf_hash(leaf: bytes) -> bytes:
    """Returns the hash of a leaf: the SHA-256 of a zero byte and the leaf (RFC 6962 section
    2.1)."""
    return hashlib.sha256(b"\0" + leaf).digest()


def mark_of(header: bytes, hash_of_ops: bytes) -> str:
    """Returns the mark of an event: the first 16 hex digits of its leaf's hash. A reader's cursor
    contains the mark together with the seq. If the log is replaced by another one, the mark at this
    seq differs, so the reader notices."""
    return leaf_hash(leaf_of(header, hash_of_ops)).hex()[:MARK_LENGTH]
