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
MARK_LENGTH = 16  #: hex digits of a leaf hash that a cursor carries
#: An entry bundle of C2SP tlog-tiles counts an entry's bytes with 16 bits.
LEAF_BYTES_MAX = 65_535

_LAST_KEY = re.compile(rb',"(?:ops|body)":')


def commitment(salt: bytes, index: int, operation: bytes) -> bytes:
    """Commits to one operation's exact bytes; tells nothing about them to who lacks the salt.

    Each operation has a salt of its own, derived from the event's, so that one can be erased and
    the others still be opened.
    """
    own_salt = hmac.digest(salt, index.to_bytes(4, "big"), "sha256")
    return hmac.digest(own_salt, operation, "sha256")


def ops_hash(salt: bytes, operations: Iterable[bytes]) -> bytes:
    """SHA-256 over the commitments of an event's operations, in order."""
    assert len(salt) == SALT_BYTES
    joined = b"".join(commitment(salt, i, op) for i, op in enumerate(operations))
    return hashlib.sha256(joined).digest()


def header_of(state: bytes) -> bytes:
    """The bytes of a stored event up to its `ops` or `body`, which are never rewritten.

    A quote inside a JSON string is escaped, and no member of the header is an object with such a
    key, so the first match of either is the key itself; a body may well hold `ops` of its own.
    """
    found = _LAST_KEY.search(state)
    if found is None:
        raise ValueError("an event ends with ops or a body")
    return state[: found.start()]


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
