#!/usr/bin/env python3
"""Verifies an archive of `foldlog export --archive` without Foldlog: Python and cryptography.

    python3 verify_log.py ARCHIVE --key VKEY [--checkpoint THE_ONE_YOU_KEPT] [--save FILE]

Every event is hashed anew: the commitments to its operations (HMAC-SHA-256 with the salts), its
leaf, and the tree over all leaves (RFC 9162 section 2.1). The root must be the one in the signed
checkpoint (C2SP tlog-checkpoint), and the tree must begin with the one that you kept. proofs.md
tells the formats. Exit code 0: all is well; 1: something is wrong, and what.
"""

import argparse
import base64
import hashlib
import hmac
import json
import re
import sys
import tarfile
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def sha256(data):
    return hashlib.sha256(data).digest()


def check(is_right, what):
    if not is_right:
        sys.exit(f"WRONG: {what}")


def open_checkpoint(note, vkey):
    """The origin, size and root that this key has signed."""
    name, key_id, key = vkey.strip().split("+", 2)
    key = base64.b64decode(key, validate=True)
    check(key[:1] == b"\1" and sha256(name.encode() + b"\n" + key)[:4].hex() == key_id, "the key")
    text, _, lines = note.decode().rpartition("\n\n")
    text += "\n"
    for line in lines.split("\n"):
        _, _, rest = line.partition(f"\u2014 {name} ")
        signature = base64.b64decode(rest, validate=True) if rest else b""
        if signature[:4].hex() == key_id:
            try:
                Ed25519PublicKey.from_public_bytes(key[1:]).verify(signature[4:], text.encode())
            except InvalidSignature:
                check(False, "the signature of the checkpoint")
            origin, size, root = text.split("\n")[:3]
            return origin, int(size), base64.b64decode(root, validate=True)
    sys.exit(f"WRONG: {name} has not signed the checkpoint")


def operations_of(state):
    """The header of an event's bytes, and the exact bytes of each of its operations."""
    found = re.search(rb',"(ops|body)":', state)
    check(found and state.endswith(b"}"), "this is no event")
    header, rest = state[: found.start()], state[found.end() : -1].decode()
    if found[1] == b"body":
        return header, [rest.encode()]
    parts, place, decoder = [], 1, json.JSONDecoder()
    while rest[place] != "]":
        end = decoder.raw_decode(rest, place)[1]
        parts.append(rest[place:end].encode())
        place = end + (rest[end] == ",")
    check(
        "[" + ",".join(p.decode() for p in parts) + "]" == rest, "the operations are not as written"
    )
    return header, parts


def record_of(operation):
    named = json.loads(operation)
    return named["collection"], named["id"]


def leaf_hash(seq, line, erased, owing):
    """The hash of the leaf that an event is; nothing that was stored is believed.

    Of erased operations only their commitments are left: `owing` are records of such ones, until
    an event says that they were `erased`.
    """
    salt, state = re.fullmatch(rb'\{"salt":"([0-9a-f]+)","event":(.*)\}', line, re.DOTALL).groups()
    check(state.startswith(b'{"seq":%d,' % seq), f"seq {seq} is missing, or in another place")
    salt = bytes.fromhex(salt.decode())
    header, operations = operations_of(state)
    commitments = b""
    for i, operation in enumerate(operations):
        if len(salt) == 32:
            own_salt = hmac.digest(salt, i.to_bytes(4, "big"), "sha256")
        else:  # something was erased: a byte, and a salt for each operation that remains
            own_salt = salt[1 + 32 * i : 33 + 32 * i]
        stated = re.search(rb',"erased":"([0-9a-f]{64})"\}$', operation)
        if stated and own_salt == bytes(32):
            commitments += bytes.fromhex(stated[1].decode())
            owing.add(record_of(operation))
        else:
            commitments += hmac.digest(own_salt, operation, "sha256")
    if b'"kind":"record-erased"' in header:
        erased.add(record_of(operations[0]))
    return sha256(b'\0%b,"ops_hash":"%b"}' % (header, sha256(commitments).hex().encode()))


def add(stack, leaf):
    """Adds a leaf to a tree that is kept as its full subtrees: (how many leaves, root)."""
    stack.append((1, leaf))
    while len(stack) > 1 and stack[-1][0] == stack[-2][0]:
        (size, right), (_, left) = stack.pop(), stack.pop()
        stack.append((2 * size, sha256(b"\1" + left + right)))


def root_of(stack):
    root = b""
    for _, left in reversed(stack):
        root = sha256(b"\1" + left + root) if root else left
    return root or sha256(b"")


def main():
    ask = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    ask.add_argument("archive")
    ask.add_argument("--key", required=True, help="the log's public key, got by another way")
    ask.add_argument("--checkpoint", help="a checkpoint that you kept")
    ask.add_argument("--save", help="where to keep this one")
    given = ask.parse_args()
    claims, stack, seq, note, erased, owing = {}, [], 0, None, set(), set()
    if given.checkpoint:
        kept_origin, size, root = open_checkpoint(Path(given.checkpoint).read_bytes(), given.key)
        claims[size] = [root]
    with tarfile.open(given.archive, "r|*") as tar:
        for member in tar:
            data = tar.extractfile(member).read()
            if member.name == "checkpoint":
                note = data
                origin, signed, root = open_checkpoint(note, given.key)
                check(
                    not given.checkpoint or origin == kept_origin, "the kept one is of another log"
                )
                claims.setdefault(signed, []).append(root)
            elif member.name.startswith("events/"):
                for line in data.removesuffix(b"\n").split(b"\n"):
                    seq += 1
                    add(stack, leaf_hash(seq, line, erased, owing))
                    for root in claims.pop(seq, ()):
                        check(
                            root_of(stack) == root, f"the first {seq} events are not those signed"
                        )
    check(note is not None, "the archive has no checkpoint")
    check(not claims, f"the log ends at {seq}, before {sorted(claims)} events that were signed")
    check(owing <= erased, f"values are gone that no event erased: {owing - erased}")
    if given.save:
        Path(given.save).write_bytes(note)
    print(f"{seq} events of {origin}, of which {signed} are signed: all is well")


if __name__ == "__main__":
    main()
