#!/usr/bin/env python3
"""Verifies an archive of `foldlog export --archive` without Foldlog: Python and cryptography.

    python3 verify_log.py ARCHIVE --key VKEY [--checkpoint THE_ONE_YOU_KEPT] [--save FILE]

After the key was changed, give the old one as well: `--key NEW --key OLD`.

Every event is hashed anew: the commitments to its operations (HMAC-SHA-256 with the salts), its
leaf, and the tree over all leaves (RFC 9162 section 2.1). The root must be the one in the signed
checkpoint (C2SP tlog-checkpoint), and the tree must begin with the one that you kept. Each tile
(C2SP tlog-tiles) must be there, and be of this tree. No key signs README.txt and keys.txt, so
nothing is believed of them. proofs.md tells the formats. Exit code 0: all is well; 1: something is
wrong, and what.
"""

import argparse
import gzip
import hashlib
import hmac
import json
import re
import sys
import zlib
from base64 import b64decode, b64encode
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
FRONT = ["README.txt", "log.json", "keys.txt", "checkpoint"]  # the first files, in order
LEVELS = {256**level: level for level in range(8)}  # of a tile: a hash of so many events


def sha256(data):
    return hashlib.sha256(data).digest()


def check(is_right, what):
    if not is_right:
        sys.exit(f"WRONG: {what}")


def parse_key(vkey):
    """The name, the id and the bytes of a public key."""
    name, key_id, text = vkey.split("+", 2)
    key = b64decode(text, validate=True)
    is_of_id = sha256(f"{name}\n".encode() + key)[:4].hex() == key_id
    check(is_of_id and b64encode(key).decode() == text, f"this is no public key: {vkey[:100]!a}")
    return name, key_id, key


def open_checkpoint(note, vkeys):
    """The origin, size and root that one of these keys has signed."""
    text, _, lines = note.decode().rpartition("\n\n")
    check(re.fullmatch("(\u2014 \\S+ [A-Za-z0-9+/=]+\n)+", lines), "the form of the checkpoint")
    for name, key_id, key in map(parse_key, vkeys):
        check(key[:1] == b"\1", "the key")
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


class Tree:
    """The tree over the leaves, and its tiles. In an archive a tile follows its last event."""

    def __init__(self):
        self.full = []  # the full subtrees: (how many leaves, root)
        self.levels = {}  # of each level: the number of full tiles, and the hashes after them
        self.due, self.is_at_end = [], False  # the tiles that must come now
        self.differing = []  # of tiles that differ: the first and the last seq, and the name

    def add(self, leaf):
        size, root = 1, leaf
        while True:
            if size in LEVELS:
                self.levels.setdefault(LEVELS[size], [0, bytearray()])[1].extend(root)
            if not self.full or self.full[-1][0] != size:
                break
            size, root = 2 * size, sha256(b"\1" + self.full.pop()[1] + root)
        self.full.append((size, root))

    def root(self):
        root = b""
        for _, left in reversed(self.full):
            root = sha256(b"\1" + left + root) if root else left
        return root

    def finish_tiles(self, least=256):
        """Says that the tiles of at least so many hashes come now, sorted by level and number."""
        for level, place in sorted(self.levels.items()):
            while len(place[1]) >= 32 * least:
                number, hashes = place[0], bytes(place[1][:8192])
                place[:] = number + 1, place[1][8192:]
                self.due.append((level, number, hashes))

    def compare(self, name, found):
        """Compares a tile of the archive with the one that must come now."""
        if not self.due and not self.is_at_end:
            self.is_at_end = True
            self.finish_tiles(1)
        if name in [name_of(tile) for tile in self.due[1:]]:
            check(False, f"{name_of(self.due[0])} is missing")
        check(self.due and name_of(self.due[0]) == name, f"{name} comes twice, or in another place")
        level, number, hashes = self.due.pop(0)
        check(len(found) == len(hashes), f"{name} is of another size")
        for n in range(0, len(found), 32):
            if found[n : n + 32] != hashes[n : n + 32]:
                first = (256 * number + n // 32) * 256**level + 1
                self.differing.append((first, first + 256**level - 1, name))
                break


def name_of(tile):
    level, number, hashes = tile
    path = f"{number % 1000:03}"
    while number := number // 1000:
        path = f"x{number % 1000:03}/{path}"
    return f"tile/{level}/{path}" + (f".p/{len(hashes) // 32}" if len(hashes) < 8192 else "")


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
    claims, proven, unproven, tree, seq, erased, owing = [], 0, [], Tree(), 0, {}, set()
    front = {}
    if given.checkpoint:
        with given.checkpoint.open("rb") as file:
            claims.append(open_checkpoint(file.read(TEXT_MAX), given.key))
    with Path(given.archive).open("rb") as raw, unpacked(raw) as archive:
        for name, size in members(archive):
            if name in FRONT:
                is_next = not seq and FRONT[len(front) : len(front) + 1] == [name]
                check(is_next, f"{name} comes twice, in another place, or after a missing file")
                front[name] = small(archive, name, size)
                if name == "checkpoint":
                    claims.append(open_checkpoint(front[name], given.key))
            elif name == f"events/{seq + 1:012}.jsonl":
                check(not tree.due, f"{''.join(map(name_of, tree.due[:1]))} is missing")
                check(not tree.is_at_end, f"{name} is in another place")
                for line in lines(archive, size):
                    seq += 1
                    tree.add(leaf_of(seq, line, erased, owing))
                    check(len(erased) + len(owing) <= ERASED_MAX, "too many records are erased")
                    for _, _, root in (claim for claim in claims if claim[1] == seq):
                        proven += 1
                        if tree.root() != root:
                            unproven.append(seq)
                tree.finish_tiles()
            else:
                tree.compare(name, small(archive, name, size))
    where = "no tile differs"
    if tree.differing:
        # A tile of a lower level names the event more closely.
        first, last, tile = min(tree.differing, key=lambda found: (found[1] - found[0], found))
        where = f"seq {first}" if first == last else f"one of seq {first} to {last}"
        where = f"{where} is the first that differs from {tile}"
    unsigned = f"the first {min(unproven, default=0)} events are not those signed"
    check(not unproven, f"{unsigned}; {where}")
    check(not tree.differing, where)
    tree.finish_tiles(1)
    check(not tree.due, f"{''.join(map(name_of, tree.due[:1]))} is missing")
    check(len(front) > 2, f"{FRONT[len(front) % 4]} is missing")
    *keys, rest = front["keys.txt"].decode().split("\n")
    check(not rest and all(map(parse_key, keys)), "the last line of keys.txt is cut off")
    header, note = json.loads(front["log.json"]), front.get("checkpoint")
    check(note, "the archive has no checkpoint")
    origin, signed, _ = claims[-1]
    check(claims[0][0] == origin, "the kept checkpoint is of another log")
    stated = f"/spaces/{header['space']}/{header['log']}"
    check(origin.endswith(stated), "log.json is of another log or space")
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
