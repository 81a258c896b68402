"""Stores the keys that sign checkpoints, in one private file outside of the database.

One key pair signs the checkpoints of all spaces. Others check the signatures with a verifier key, a
text that contains the public key and the name of one log (its origin). Therefore the verifier keys
of two logs differ, although the same key pair signs for both logs.
"""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from foldlog.domain.errors import OperatorError
from foldlog.domain.notes import COSIGNATURE, ED25519, KEY_BYTES, Signer, Verifier, public_key_of
from foldlog.infrastructure.files import make_folder, write_new

FILE = "keys.json"
MODE = 0o600


class KeysUnusable(OperatorError):
    """The key file cannot be used.

    The file cannot be read or written, other users can read it, or a needed key is missing in it.
    """

    code = "keys-unusable"


class Key(msgspec.Struct, omit_defaults=True):
    """A key pair for signatures. The private key and the public key are encoded in base64.

    When a new key pair replaces this one, `private` is deleted. `public` is kept, because it
    verifies old signatures.
    """

    public: str
    made_at: str
    private: str | None = None
    retired_at: str | None = None

    def __repr__(self) -> str:
        return f"Key({self.public})"  # keeps the private half out of logs and tracebacks


class KeyRing(msgspec.Struct):
    """The content of the key file: all key pairs of this service.

    The list `log` contains the keys that sign the checkpoints of our logs. The list `witness`
    contains the keys that cosign the checkpoints of other services. In each list, the last key is
    the current one, and the others are old.
    """

    version: Literal[1] = 1
    log: list[Key] = []
    witness: list[Key] = []

    def signer(self, name: str) -> Signer | None:
        """Returns a signer for one of our logs, which uses the current log key.

        `name` is the name of the log (its origin). Returns `None` if the log key is missing.
        """
        return _signer(self.log, name)

    def cosigner(self, name: str) -> Signer | None:
        """Returns a signer for checkpoints of other services, which uses the current witness key.

        `name` is the name of this witness in its cosignatures. Returns `None` if the witness key is
        missing.
        """
        return _signer(self.witness, name)

    def verifiers(self, name: str) -> list[Verifier]:
        """Returns a list of the public keys that verify the signatures of one of our logs.

        `name` is the name of the log. The current key is the first of the list. The old keys
        follow, because they verify old signatures.
        """
        return [Verifier(name, b64decode(key.public), ED25519) for key in reversed(self.log)]

    def cosigner_verifier(self, name: str) -> Verifier | None:
        """Returns the public key that verifies the cosignatures of this service.

        `name` is the name of this witness. Returns `None` if the witness key is missing.
        """
        found = self.cosigner(name)
        return None if found is None else found.verifier(COSIGNATURE)


def _signer(keys: list[Key], name: str) -> Signer | None:
    """Returns a signer that uses the last key of the list, or `None` if the list is empty.

    `name` is the name of the signer in its signatures.
    """
    private = keys[-1].private if keys else None
    return None if private is None else Signer(name, b64decode(private))


def read_keys(folder: Path) -> KeyRing:
    """Reads the key file in a folder. If the file is missing, the returned ring is empty.

    Raises `KeysUnusable` if other users can access the file, if the file cannot be read, or if its
    content is invalid.
    """
    path = folder / FILE
    try:
        if not path.exists():
            return KeyRing()
        if path.stat().st_mode & 0o077:
            raise KeysUnusable(f"other users can read {path}: run chmod 600 {path}")
        return msgspec.json.decode(path.read_bytes(), type=KeyRing)
    except (OSError, msgspec.MsgspecError) as exc:
        raise KeysUnusable(f"{path}: {exc}") from exc


def why_unsigned(folder: Path) -> str | None:
    """Returns the reason why a service with this folder signs nothing, or `None` if it signs."""
    try:
        has_key = read_keys(folder).signer("") is not None
    except KeysUnusable as exc:
        return str(exc)
    return None if has_key else f"there is no key in {folder}: run foldlog keys new"


def make_keys(folder: Path) -> KeyRing:
    """Creates the log key and the witness key if they are missing, and returns all keys.

    Raises `KeysUnusable` if the key file cannot be read or written.
    """
    ring = read_keys(folder)
    if ring.log and ring.witness:
        return ring
    ring.log = ring.log or [_new_key()]
    ring.witness = ring.witness or [_new_key()]
    _write(folder, ring)
    return ring


def rotate_keys(folder: Path) -> KeyRing:
    """Makes a new log key, deletes the private half of the old one, and returns all keys.

    Raises `KeysUnusable` if there is no log key to replace, or if the key file cannot be read or
    written.
    """
    ring = read_keys(folder)
    if not ring.log:
        raise KeysUnusable(f"there is no key in {folder} to rotate: run foldlog keys new")
    ring.log[-1].private, ring.log[-1].retired_at = None, now_text()
    ring.log.append(_new_key())
    _write(folder, ring)
    return ring


def _new_key() -> Key:
    private = secrets.token_bytes(KEY_BYTES)
    public = b64encode(public_key_of(private)).decode()
    return Key(public=public, made_at=now_text(), private=b64encode(private).decode())


def now_text() -> str:
    """Returns the present time in UTC, in whole seconds, as RFC 3339 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _write(folder: Path, ring: KeyRing) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_folder(folder)
        text = msgspec.json.format(msgspec.json.encode(ring)).decode()
        write_new(folder / FILE, text + "\n", MODE)
    except OSError as exc:
        raise KeysUnusable(f"cannot write {folder / FILE}: {exc}") from exc
