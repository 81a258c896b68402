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
import gzip
import hashlib
import hmac
import json
import re
import sys
import zlib
from base64 import b64decode
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# The whole form of an erased operation: a commitment in a field of another one is none.
ERASED = re.compile(
    rb'\{"op":"(?:put|add|delete)","collection":"[^"\\]*","id":"(?:[^"\\]|\\.)*","erased":"([0-9a-f]{64})"\}',
    re.DOTALL,
)

# Limits, in bytes: an archive may be hostile, so no read is without one.
TEXT_MAX, EVENTS_MAX, LINE_MAX, END_MAX = 2**16, 2**26, 2**22 + 2**18, 2**20
VALUES_MAX = 1_000_000  # of one line, counted as `,`, `[` and `{`
ERASED_MAX = 1_000_000  # records that were erased
FRONT = ("README.txt", "log.json", "keys.txt", "checkpoint")  # the order of the first files


def sha256(data):
    return hashlib.sha256(data).digest()


def check(is_right, what):
    if not is_right:
        sys.exit(f"WRONG: {what}")


def open_checkpoint(note, vkeys):
    """The origin, size and root that one of these keys has signed."""
    text, _, lines = note.decode().rpartition("\n\n")
    check(re.fullmatch("(\u2014 \\S+ [A-Za-z0-9+/=]+\n)+", lines), "the form of the checkpoint")
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
    check(is_text(named["collection"]) and is_text(named["id"]), "no name of a record")
    return named["collection"], named["id"]


def is_text(value):
    return isinstance(value, str) and len(value) <= 128


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


def unpacked(raw):
    return gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw


def exactly(archive, size):
    data = archive.read(size)
    check(len(data) == size, "the archive is cut off")
    return data


def members(archive):
    """The name and size of each file of a tar archive: ordinary ones with short names only."""
    while any(block := exactly(archive, 512)):
        name = block[:100].rstrip(b"\0").decode("ascii")
        size = int(block[124:136].rstrip(b"\0 "), 8)
        check(block[156:157] in b"0\0" and size >= 0, f"{name!a} is no ordinary file")
        yield name, size
        exactly(archive, -size % 512)
    check(not any(archive.read(END_MAX)) and not archive.read(1), "more follows the archive's end")


def lines(archive, size):
    """The lines of a file with events."""
    check(0 < size <= EVENTS_MAX, "a file with events is empty or too large")
    while size:
        line = archive.readline(min(size, LINE_MAX))
        check(line.endswith(b"\n"), "a line is cut off or too long")
        check(sum(map(line.count, (b",", b"[", b"{"))) <= VALUES_MAX, "a line has too many values")
        size -= len(line)
        yield line.removesuffix(b"\n")


def small(archive, name, size):
    """The content of a file that is no file with events."""
    is_tile = re.fullmatch(r"tile/\d{1,2}/[\dx/.p]{3,40}", name)
    most = 8192 if is_tile else TEXT_MAX if name in FRONT else -1
    check(size <= most, f"{name!a} does not belong in an archive, or is too large")
    return exactly(archive, size)


def main():
    try:
        verify()
    except (EOFError, OSError, ValueError, LookupError, RecursionError, zlib.error) as exc:
        sys.exit(f"WRONG: this is no readable archive of a log: {str(exc)[:200]!a}")


def verify():
    ask = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    ask.add_argument("archive")
    ask.add_argument("--key", action="append", required=True, help="a public key of the log's")
    ask.add_argument("--checkpoint", type=Path, help="a checkpoint that you kept")
    ask.add_argument("--save", type=Path, help="where to keep this one")
    given = ask.parse_args()
    claims, proven, tree, seq, note, erased, owing = [], 0, [], 0, None, {}, set()
    leaves, differs, unproven, front, header = {}, [], [], [], None
    if given.checkpoint:
        with given.checkpoint.open("rb") as file:
            claims.append(open_checkpoint(file.read(TEXT_MAX), given.key))
    with Path(given.archive).open("rb") as raw, unpacked(raw) as archive:
        for name, size in members(archive):
            if name in FRONT:
                front.append(FRONT.index(name))
                check(front == sorted({*front}) and not seq, f"the place of {name}")
            if name == "checkpoint":
                note = small(archive, name, size)
                claims.append(open_checkpoint(note, given.key))
            elif name == f"events/{seq + 1:012}.jsonl":
                # A tile comes after the events that fill it: older leaves have none any more.
                leaves = {n: leaf for n, leaf in leaves.items() if n > seq - 256}
                for line in lines(archive, size):
                    seq += 1
                    leaves[seq] = leaf_of(seq, line, erased, owing)
                    check(len(erased) + len(owing) <= ERASED_MAX, "too many records are erased")
                    add(tree, leaves[seq])
                    for _, _, root in (claim for claim in claims if claim[1] == seq):
                        proven += 1
                        if root_of(tree) != root:
                            unproven.append(seq)
            else:
                data = small(archive, name, size)
                header = json.loads(data) if name == "log.json" else header
                if name.startswith("tile/0/"):
                    found = differing_leaf(leaves, name.removeprefix("tile/0/"), data)
                    differs = [min([found, *differs])] if found else differs
    if unproven:
        named = f"; seq {min(differs)} is the first that differs from its tile" if differs else ""
        check(False, f"the first {unproven[0]} events are not those signed{named}")
    check(not differs, f"a tile has another leaf at seq {min(differs, default=0)}")
    check(note, "the archive has no checkpoint")
    origin, signed, _ = claims[-1]
    check(claims[0][0] == origin, "the kept checkpoint is of another log")
    stated = f"/spaces/{header['space']}/{header['log']}" if header else ""
    check(header and origin.endswith(stated), "log.json is missing, or of another log or space")
    check(
        (header["foldlog"], header["version"]) == ("export", 1) and header["head"] == seq,
        f"log.json is not of an archive of {seq} events",
    )
    check(proven == len(claims), f"the log ends at {seq}, before what was signed")
    check(not owing, f"values are gone that no event erased: {sorted(owing)[:3]!a}")
    if given.save:
        given.save.write_bytes(note)
    print(f"{seq} events of {printable(origin)}, of which {signed} are signed: all is well")


def printable(text):
    """A text without what acts on a terminal."""
    return ascii(text)[1:-1]


if __name__ == "__main__":
    main()
