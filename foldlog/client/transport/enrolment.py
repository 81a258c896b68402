"""Gives a device its own token: the device makes the secret, and enrols with a one-time code.

The secret stays outside of the replica, so a copy of the replica gives no access. It is saved
before the request that announces it. So a device that gets no answer repeats the request with the
same secret, and the server gives the same answer.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from foldlog.client.errors import BadArgument, FileUnusable, ServerProblem
from foldlog.domain.access import TOKEN_BYTES, new_token
from foldlog.domain.enrolment import digest_of_code
from foldlog.domain.errors import EnrolmentRefused

#: appended to the name of the replica's file
SUFFIX = ".token"
#: `post(path, body)` sends a request to the space, with the token that `current` returns
Post = Callable[[str, dict[str, Any]], Any]


class Secrets(ABC):
    """Keeps the secret of a device, for example in the key store of the operating system.

    An app may pass its own implementation to `foldlog.open`. The methods are called by the thread
    that syncs. An error that they raise ends this sync.
    """

    @abstractmethod
    def load(self) -> str | None:
        """Returns the text that was saved last, or `None` if no text was saved."""

    @abstractmethod
    def save(self, secret: str) -> None:
        """Saves a text in place of the earlier one. The method returns when the text is safe: the
        device cannot get it again."""


class SecretFile(Secrets):
    """Keeps the secret in a file beside the replica, which only its owner can read (mode 0600)."""

    def __init__(self, path: Path):
        self._path = path

    def load(self) -> str | None:
        try:
            return self._path.read_text("utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as exc:
            raise FileUnusable(f"{self._path} cannot be read: {exc}") from exc

    def save(self, secret: str) -> None:
        unfinished = self._path.with_name(f"{self._path.name}.{secrets.token_hex(4)}")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(unfinished, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(secret)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._path)
        except OSError as exc:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise FileUnusable(f"{self._path} cannot be written: {exc}") from exc


class _Own(msgspec.Struct):
    """A token of this device, for one device id."""

    device: str
    token: str


class _State(msgspec.Struct, omit_defaults=True):
    """The text that `Secrets` keeps, as JSON."""

    current: _Own | None = None
    #: announced to the server, whose answer is still missing
    next: _Own | None = None


class DeviceToken:
    """The token of this device, and its enrolment. `code` is the enrolment code, if there is one.

    The constructor raises `BadArgument` if the code has another form than a code.
    """

    def __init__(self, kept: Secrets, code: str | None = None):
        try:
            if code is not None:
                digest_of_code(code)
        except EnrolmentRefused as exc:
            raise BadArgument(f"enrol is no code: {exc}") from None
        self._kept = kept
        self._code = code
        self._state: _State | None = None

    def current(self) -> str:
        """Returns the token for a request, or an empty text before the enrolment."""
        current = self._load().current
        return "" if current is None else current.token

    def ensure(self, device: str, post: Post) -> None:
        """Gets a token for the device id `device`, unless the device has one.

        A device without a token enrols with its code. A device with the token of an earlier id
        trades it. If there is neither a code nor a token, the method has no effect.

        Raises `ServerProblem` with the code `enrolment-refused` if the server refuses the code, and
        `FileUnusable` if the secret cannot be saved. Raises the errors of `post`.
        """
        if self._is_of(device):
            return
        self._state = None  # another process on the same replica may have saved another one
        if self._is_of(device):
            return
        state = self._load()
        if state.current is not None:
            try:
                self._trade(state, device, post)
                return
            except ServerProblem as exc:
                if exc.status not in (401, 403, 404) or self._code is None:
                    raise
            state = _State()  # the earlier token is of no use, and the user has a code
        if self._code is not None:
            self._announce(state, device, lambda body: post("enrol", {"code": self._code, **body}))

    def _is_of(self, device: str) -> bool:
        current = self._load().current
        return current is not None and current.device == device

    def _trade(self, state: _State, device: str, post: Post) -> None:
        while state.current is None or state.current.device != device:
            # A trade without an answer is ended first, because a token can be traded once.
            target = device if state.next is None else state.next.device
            self._announce(state, target, lambda body: post("trade", body))

    def _announce(
        self, state: _State, device: str, send: Callable[[dict[str, Any]], object]
    ) -> None:
        """Saves a new secret for `device`, sends its digest, and uses it from then on."""
        if state.next is None or state.next.device != device:
            state.next = _Own(device, new_token(secrets.token_bytes(TOKEN_BYTES))[0])
            self._save(state)
        digest = hashlib.sha256(state.next.token.encode()).hexdigest()
        send({"device": device, "digest": digest})
        self._save(_State(current=state.next))
        state.current, state.next = state.next, None

    def _load(self) -> _State:
        if self._state is None:
            text = self._kept.load()
            try:
                self._state = _State() if text is None else msgspec.json.decode(text, type=_State)
            except msgspec.MsgspecError:  # its message would quote the secret
                raise FileUnusable("the kept secret of this device is unreadable") from None
        return self._state

    def _save(self, state: _State) -> None:
        self._kept.save(msgspec.json.encode(state).decode())
        self._state = state
