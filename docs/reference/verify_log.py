#!/usr/bin/env python3
"""Verifies an archive of `foldlog export --archive` without Foldlog: Python and cryptography.

    python3 verify_log.py ARCHIVE --key VKEY [--checkpoint THE_ONE_YOU_KEPT] [--save FILE]

After the key was changed, give the old one as well: `--key NEW --key OLD`.

Every event is hashed anew: the commitments to its operations (HMAC-SHA-256 with the salts), its
leaf, and the tree over all leaves (RFC 9162 section 2.1). The root must be the one in the signed
checkpoint (C2SP tlog-checkpoint), and the tree must begin with the one that you kept. proofs.md
tells the formats. Exit code 0: all is well; 1: something is wrong, and what.
"""

import argparse
import hashlib
import hmac
import json
import re
import sys
import tarfile
import zlib
from base64 import b64decode
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# The whole form of an erased operation: a commitment in a field of another one is none.
ERASED = re.compile(
    rb'\{"op":"[a-z]+","collection":"[^"\\]*","id":"(?:[^"\\]|\\.)*","erased":"([0-9a-f]{64})"\}',
    re.DOTALL,
)


def sha256(data):
    return hashlib.sha256(data).digest()


def check(is_right, what):
    if not is_right:
        sys.exit(f"WRONG: {what}")


def open_checkpoint(note, vkeys):
    """The origin, size and root that one of these keys has signed."""
    text, _, lines = note.decode().rpartition("\n\n")
    for vkey in vkeys:
        name, key_id, key = vkey.strip().split("+", 2)
        key = b64decode(key)
        check(
            key[:1] == b"\1" and sha256(f"{name}\n".encode() + key)[:4].hex() == key_id, "the key"
        )
        for found in re.findall(f"^\u2014 {re.escape(name)} (.+)$", lines, re.M):
            signature = b64decode(found)
            if signature[:4].hex() == key_id:
                try:
                    public = Ed25519PublicKey.from_public_bytes(key[1:])
                    public.verify(signature[4:], f"{text}\n".encode())
                except InvalidSignature:
                    check(False, "the signature of the checkpoint")
                origin, size, root = text.split("\n")[:3]
                return origin, int(size), b64decode(root)
    sys.exit("WRONG: none of these keys has signed the checkpoint")


def take_apart(state):
    """An event's bytes up to its operations, and the exact bytes of each (or of its body)."""
    found = re.search(rb',"(ops|body)":', state)
    check(found and state.endswith(b"}"), "this is no event")
    header, rest = state[: found.start()], state[found.end() : -1].decode()
    check((found[1] == b"ops") == is_changeset(header), "a changeset has ops, other events a body")
    if found[1] == b"body":
        return header, [rest.encode()]
    parts, place = [], 1
    while rest[place] != "]":
        end = json.JSONDecoder().raw_decode(rest, place)[1]
        parts.append(rest[place:end])
        place = end + (rest[end] == ",")
    check(f"[{','.join(parts)}]" == rest, "the operations are not as written")
    return header, [part.encode() for part in parts]


def is_changeset(header):
    return b',"kind":"changeset",' in header


def leaf_of(seq, line, erased, owing):
    """The hash of the leaf that an event is; nothing that was stored is believed.

    Of erased operations only their commitments are left: `owing` are records of such ones, until
    an event that their changeset had not seen says that they were `erased`.
    """
    found = re.fullmatch(rb'\{"salt":"([0-9a-f]+)","event":(\{"seq":(\d+),.*)\}', line, re.DOTALL)
    check(found and int(found[3]) == seq, f"seq {seq} is missing, or in another place")
    salt, (header, operations) = bytes.fromhex(found[1].decode()), take_apart(found[2])
    check(len(salt) == 32 or is_changeset(header), f"the body of seq {seq} has no salt")
    commitments = b""
    for i, operation in enumerate(operations):
        own_salt = salt[1 + 32 * i : 33 + 32 * i]  # if some are erased: a byte, a salt for each
        if len(salt) == 32:
            own_salt = hmac.digest(salt, i.to_bytes(4, "big"), "sha256")
        stated = ERASED.fullmatch(operation)
        if stated and own_salt == bytes(32):
            commitments += bytes.fromhex(stated[1].decode())
            if erased.get(record_of(operation), 0) <= json.loads(header + b"}")["base"]:
                owing.add(record_of(operation))
        else:
            commitments += hmac.digest(own_salt, operation, "sha256")
    if b'"kind":"record-erased"' in header:
        erased[record_of(operations[0])] = seq
        owing.discard(record_of(operations[0]))
    return sha256(b'\0%b,"ops_hash":"%b"}' % (header, sha256(commitments).hex().encode()))


def record_of(operation):
    named = json.loads(operation)
    return named["collection"], named["id"]


def add(tree, leaf):
    """Adds a leaf to a tree that is kept as its full subtrees: (how many leaves, root)."""
    tree.append((1, leaf))
    while len(tree) > 1 and tree[-1][0] == tree[-2][0]:
        (size, right), (_, left) = tree.pop(), tree.pop()
        tree.append((2 * size, sha256(b"\1" + left + right)))


def root_of(tree):
    root = b""
    for _, left in reversed(tree):
        root = sha256(b"\1" + left + root) if root else left
    return root


def differing_leaf(leaves, path, tile):
    """The first seq whose leaf is not the one in this tile of level 0, or None."""
    first = 256 * int(re.sub(r"\.p/\d+$", "", path).replace("x", "").replace("/", ""))
    for place in range(len(tile) // 32):
        leaf = leaves.pop(first + place + 1, None)
        if leaf is not None and leaf != tile[32 * place : 32 * place + 32]:
            return first + place + 1
    return None


def main():
    try:
        verify()
    except (tarfile.TarError, EOFError, OSError, ValueError, LookupError, zlib.error) as exc:
        sys.exit(f"WRONG: this is no readable archive of a log: {str(exc)!a}")


def verify():
    ask = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    ask.add_argument("archive")
    ask.add_argument("--key", action="append", required=True, help="a public key of the log's")
    ask.add_argument("--checkpoint", type=Path, help="a checkpoint that you kept")
    ask.add_argument("--save", type=Path, help="where to keep this one")
    given = ask.parse_args()
    claims, proven, tree, seq, note, erased, owing = [], 0, [], 0, None, {}, set()
    leaves, differs, unproven = {}, [], []
    if given.checkpoint:
        claims.append(open_checkpoint(given.checkpoint.read_bytes(), given.key))
    with tarfile.open(given.archive, "r|*") as tar:
        for member in tar:
            check(member.isfile(), "this is no archive of a log")
            data = tar.extractfile(member).read()
            if member.name == "checkpoint":
                note = data
                claims.append(open_checkpoint(note, given.key))
            elif member.name.startswith("events/"):
                for line in data.removesuffix(b"\n").split(b"\n"):
                    seq += 1
                    leaves[seq] = leaf_of(seq, line, erased, owing)
                    add(tree, leaves[seq])
                    for _, _, root in (claim for claim in claims if claim[1] == seq):
                        proven += 1
                        if root_of(tree) != root:
                            unproven.append(seq)
            elif member.name.startswith("tile/0/"):
                found = differing_leaf(leaves, member.name.removeprefix("tile/0/"), data)
                differs += [found] if found else []
    if unproven:
        named = f"; seq {min(differs)} is the first that differs from its tile" if differs else ""
        check(False, f"the first {unproven[0]} events are not those signed{named}")
    check(not differs, f"a tile has another leaf at seq {min(differs, default=0)}")
    check(note, "the archive has no checkpoint")
    origin, signed, _ = claims[-1]
    check(claims[0][0] == origin, "the kept checkpoint is of another log")
    check(proven == len(claims), f"the log ends at {seq}, before what was signed")
    check(not owing, f"values are gone that no event erased: {owing}")
    if given.save:
        given.save.write_bytes(note)
    print(f"{seq} events of {origin}, of which {signed} are signed: all is well")


if __name__ == "__main__":
    main()
