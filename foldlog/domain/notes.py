"""Encodes, decodes, signs and verifies signed notes, and the checkpoints of logs, which are signed
notes.

The bytes follow the formats of C2SP: signed-note, tlog-checkpoint, tlog-cosignature (v1, Ed25519)
and the paths of tlog-tiles. Other tools can therefore read and verify them. An example of a
checkpoint:

    foldlog.local/spaces/home/0b7f6a52-3a0e-4a87-9d2b-6f1f0c3f3a11      the origin: which log
    2252                                                                the number of events
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=                        the root of the tree

    — foldlog.local/spaces/home/0b7f... Az3grlgtzPICa5OS8npVmf1Myq...    signed by the log
    — witness.example/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn...         cosigned by a witness
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .merkle import HASH_BYTES

ED25519 = 1  #: signs the note's text: a log's signature
COSIGNATURE = 4  #: signs the text and the time of signing: a witness's signature

KEY_BYTES = 32
NOTE_BYTES_MAX = 64 * 2**10
SIGNATURES_MAX = 100
SIZE_MAX = 2**63 - 1

_DASH = "— "
_NAME = re.compile(r"[^\s+\x00-\x1f]+")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_ORIGIN_NAME = re.compile(r"[A-Za-z0-9._:~-]+(?:/[A-Za-z0-9._:~-]+)*", re.ASCII)


class InvalidNote(ValueError):
    """Raised if a note, checkpoint, key or bundle is invalid, or if a required signature is missing
    or wrong."""


def is_origin_name(name: str) -> bool:
    """Returns whether this text is a valid name of a service. The origins of all logs of the
    service begin with this name. A valid name is a URL without its scheme, at most 200 characters
    long."""
    return _ORIGIN_NAME.fullmatch(name) is not None and len(name) <= 200


def origin_of(name: str, space: str, log: str) -> str:
    """Returns the origin of a log, which is the first line of its checkpoints. `name` is the name
    of the service. The origin contains the log's id, so that a forked log, which has another id,
    has another origin."""
    return f"{name}/spaces/{space}/{log}"


def log_of(origin: str) -> str:
    """Returns the id of the log that an origin names, which is its last part."""
    return origin.rpartition("/")[2]


# -- keys


@dataclass(frozen=True)
class Verifier:
    """A public key with the name of its owner, for verifying signatures. The text form of a
    verifier is called a vkey."""

    name: str
    public: bytes
    algorithm: int = ED25519

    @property
    def key_id(self) -> bytes:
        encoded = self.name.encode() + b"\n" + bytes([self.algorithm]) + self.public
        return hashlib.sha256(encoded).digest()[:4]

    @property
    def vkey(self) -> str:
        key = b64encode(bytes([self.algorithm]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{key}"

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """Decodes a vkey. Raises `InvalidNote` if the vkey is invalid."""
        name, _, rest = vkey.strip().partition("+")
        id, _, encoded = rest.partition("+")
        key = _decode_base64(encoded)
        found = cls(name, key[1:], key[0] if key else 0)
        is_known = found.algorithm in (ED25519, COSIGNATURE) and len(found.public) == KEY_BYTES
        if not _NAME.fullmatch(name) or not is_known or found.key_id.hex() != id:
            raise InvalidNote(f"invalid verifier key: {vkey!r}")
        return found

    def verifies(self, text: str, signature: bytes) -> bool:
        signed = text.encode()
        if self.algorithm == COSIGNATURE:
            signed = _cosigned(int.from_bytes(signature[:8], "big"), text)
            signature = signature[8:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, signed)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class Signer:
    """A private key with the name of its owner, for making signatures."""

    name: str
    private: bytes = field(repr=False)

    @property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.private)

    def verifier(self, algorithm: int = ED25519) -> Verifier:
        return Verifier(self.name, self._key.public_key().public_bytes_raw(), algorithm)

    def sign(self, text: str) -> Signature:
        return Signature(self.name, self.verifier().key_id, self._key.sign(text.encode()))

    def cosign(self, text: str, time: int) -> Signature:
        """Returns a witness's signature of the checkpoint `text`. It states that at `time`, in
        seconds since 1970, this was the latest checkpoint that the witness had seen."""
        signature = time.to_bytes(8, "big") + self._key.sign(_cosigned(time, text))
        return Signature(self.name, self.verifier(COSIGNATURE).key_id, signature)


def public_key_of(private: bytes) -> bytes:
    return Signer("", private).verifier().public


def _decode_base64(text: str) -> bytes:
    """Decodes base64. Returns empty bytes if the text is invalid. Only the text that an encoder
    makes from the bytes is valid; other texts that a lenient decoder reads as the same bytes are
    invalid."""
    try:
        decoded = b64decode(text, validate=True)
    except ValueError:
        return b""
    return decoded if b64encode(decoded).decode() == text else b""


def _cosigned(time: int, text: str) -> bytes:
    return f"cosignature/v1\ntime {time}\n{text}".encode()


# -- notes


@dataclass(frozen=True)
class Signature:
    """One signature of a note: one of the lines below its text."""

    name: str
    key_id: bytes
    signature: bytes

    @property
    def line(self) -> str:
        return f"{_DASH}{self.name} {b64encode(self.key_id + self.signature).decode()}\n"

    def is_of(self, verifier: Verifier) -> bool:
        return (self.name, self.key_id) == (verifier.name, verifier.key_id)


@dataclass(frozen=True)
class Note:
    """A text with its signatures. The signatures are unverified until `verified_by` is called."""

    text: str
    signatures: Sequence[Signature]

    @property
    def encoded(self) -> bytes:
        return (self.text + "\n" + "".join(s.line for s in self.signatures)).encode()

    @classmethod
    def parse(cls, encoded: bytes) -> Note:
        """Decodes a note. Its signatures stay unverified until `verified_by` is called. Raises
        `InvalidNote` if the bytes are invalid."""
        if len(encoded) > NOTE_BYTES_MAX:
            raise InvalidNote("the note is too long")
        try:
            note = encoded.decode()
        except UnicodeDecodeError as exc:
            raise InvalidNote("a note must be text in UTF-8") from exc
        if any(c < " " and c != "\n" for c in note):
            raise InvalidNote("a note must be free of control characters")
        text, blank, below = note.rpartition("\n\n")
        if not blank or not below:
            raise InvalidNote("a note must end with an empty line and its signatures")
        return cls(text + "\n", signature_lines(below))

    def verified_by(self, verifiers: Iterable[Verifier]) -> list[Verifier]:
        """Returns those of the given verifiers whose key has signed the note. Raises `InvalidNote`
        if the note has a wrong signature by one of them."""
        signed = []
        for verifier in verifiers:
            for signature in self.signatures:
                if signature.is_of(verifier):
                    if not verifier.verifies(self.text, signature.signature):
                        raise InvalidNote(f"the signature of {verifier.name} is wrong")
                    signed.append(verifier)
                    break
        return signed

    def with_signatures(self, more: Iterable[Signature]) -> Note:
        """Returns the same note with these signatures added. A new signature replaces an earlier
        one by the same key."""
        by_key = {(s.name, s.key_id): s for s in [*self.signatures, *more]}
        return Note(self.text, list(by_key.values()))


def signature_lines(text: str) -> list[Signature]:
    """Decodes the signature lines of a note to a list of signatures. Raises `InvalidNote` if a line
    is invalid, if there are no lines, or if there are too many."""
    *lines, rest = text.split("\n")
    if rest or not lines or len(lines) > SIGNATURES_MAX:
        raise InvalidNote(f"a note must have 1-{SIGNATURES_MAX} complete lines of signatures")
    found = []
    for line in lines:
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        decoded = _decode_base64(encoded)
        if not line.startswith(_DASH) or not _NAME.fullmatch(name) or len(decoded) < 5:
            raise InvalidNote(f"invalid signature line: {line[:100]!r}")
        found.append(Signature(name, decoded[:4], decoded[4:]))
    return found


# -- checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """States that the log named by `origin` has `size` events, and that the Merkle tree over them
    has this root."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"

    @classmethod
    def of(cls, encoded: bytes) -> Checkpoint:
        """Decodes the checkpoint in a signed note. The signatures are left unchecked. Raises
        `InvalidNote` if the note or its text is invalid."""
        return cls.parse(Note.parse(encoded).text)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Decodes the text of a checkpoint. Lines after the third are ignored, although the
        signatures cover them. Raises `InvalidNote` if the text is invalid."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise InvalidNote("a checkpoint must have three lines or more, all of them filled")
        origin, size, root = lines[:3]
        decoded = _decode_base64(root)
        is_size = _DECIMAL.fullmatch(size) is not None and int(size) <= SIZE_MAX
        if not is_size or len(decoded) != HASH_BYTES:
            raise InvalidNote("a checkpoint must have a size and a root of 32 bytes in base64")
        return cls(origin, int(size), decoded)


def open_checkpoint(
    encoded: bytes, verifiers: Iterable[Verifier], *, origin: str | None = None
) -> tuple[Checkpoint, Note]:
    """Decodes a checkpoint and verifies its signatures. Returns the checkpoint and the note that
    contains it.

    Raises `InvalidNote` if the bytes are invalid, if none of the verifiers has signed the
    checkpoint, or if the checkpoint has another origin than `origin`.
    """
    note = Note.parse(encoded)
    checkpoint = Checkpoint.parse(note.text)
    if origin is not None and checkpoint.origin != origin:
        raise InvalidNote(f"a checkpoint of {checkpoint.origin!r} instead of {origin!r}")
    if not note.verified_by(verifiers):
        raise InvalidNote(f"no known key has signed this checkpoint of {checkpoint.origin!r}")
    return checkpoint, note


# -- paths and bundles of tlog-tiles

_TILE_PATH = re.compile(r"((?:x[0-9]{3}/)*)([0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII)
_LEVEL = re.compile(r"[0-9]|[1-5][0-9]|6[0-3]", re.ASCII)
TILE_WIDTH_PARTIAL_MAX = 255
INDEX_MAX = 2**48


def tile_path(index: int, width: int | None = None) -> str:
    """Returns the path of a tile in the format of tlog-tiles. For example, index 1234067 gives
    `x001/x234/067`. For a partial tile of 112 hashes, `.p/112` is added at the end."""
    parts = [f"{index % 1000:03}"]
    while index := index // 1000:
        parts.append(f"x{index % 1000:03}")
    return "/".join(reversed(parts)) + (f".p/{width}" if width else "")


def parse_tile_path(path: str) -> tuple[int, int | None] | None:
    """Returns the index of the tile at this path, and the width if the tile is partial. Returns
    `None` if the path is invalid."""
    found = _TILE_PATH.fullmatch(path)
    if found is None or len(path) > 50:
        return None
    index = int(found[1].replace("x", "").replace("/", "") + found[2])
    width = None if found[3] is None else int(found[3])
    is_one_way = path == tile_path(index, width)  # a leading `x000/` would be a second spelling
    if not is_one_way or index > INDEX_MAX or (width or 0) > TILE_WIDTH_PARTIAL_MAX:
        return None
    return index, width


def parse_level(text: str) -> int | None:
    return int(text) if _LEVEL.fullmatch(text) else None


def bundle(entries: Iterable[bytes]) -> bytes:
    """Encodes leaves as an entry bundle of tlog-tiles. Before each entry, the bundle has the length
    of the entry in two bytes."""
    return b"".join([len(entry).to_bytes(2, "big") + entry for entry in entries])


def unbundled(encoded: bytes) -> list[bytes]:
    """Decodes an entry bundle to its entries. Raises `InvalidNote` if the bundle is cut off."""
    entries, position = [], 0
    while position < len(encoded):
        end = position + 2 + int.from_bytes(encoded[position : position + 2], "big")
        entries.append(encoded[position + 2 : end])
        position = end
    if position != len(encoded):
        raise InvalidNote("the bundle is cut off")
    return entries
