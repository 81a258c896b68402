"""Simulates the devices of the demo, and the sign-in service that issues their tokens."""

from __future__ import annotations

import json
import secrets
import time
from base64 import urlsafe_b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import jwt
import msgspec

from foldlog.domain.errors import OperatorError
from foldlog.domain.events import Event
from foldlog.infrastructure.files import write_new

SPACE = "flask"
PAGE_EVENTS = 1_000
TOKEN_SECONDS = 3_600


class SignIn:
    """Simulates the sign-in service of an app, which issues a token (JWT) to each device.

    The constructor makes a new secret key, and writes the key to a file. The Foldlog service
    reads this file to check the tokens.
    """

    AUDIENCE = "foldlog-demo"

    def __init__(self, folder: Path):
        self._secret = secrets.token_bytes(32)
        self.file = folder / "sign-in.json"
        secret = urlsafe_b64encode(self._secret).rstrip(b"=").decode()
        key = {"kty": "oct", "alg": "HS256", "kid": "demo", "k": secret}
        folder.mkdir(parents=True, exist_ok=True)
        self.file.unlink(missing_ok=True)
        write_new(self.file, json.dumps({"keys": [key]}), 0o600)

    @property
    def env(self) -> dict[str, str]:
        """Returns a dict of environment variables. A Foldlog service that is started with these
        variables accepts the tokens of this sign-in service.
        """
        return {
            "FOLDLOG_ACCESS": "tokens",
            "FOLDLOG_JWT_KEYS": str(self.file),
            "FOLDLOG_JWT_AUDIENCE": self.AUDIENCE,
        }

    def token(self, device: str) -> str:
        """Returns a token that lets the device read and write in the space of the demo for
        one hour.
        """
        claims = {
            "sub": device,
            "aud": self.AUDIENCE,
            "exp": time.time() + TOKEN_SECONDS,
            "space": SPACE,
            "device": device,
            "scope": "read write",
        }
        return jwt.encode(claims, self._secret, "HS256", headers={"kid": "demo"})


class Device:
    """A simulated device, with its id, its token, and its cursor in the log."""

    def __init__(self, http: httpx.Client, id: str, token: str):
        self._http = http
        self.id = id
        self.token = token
        self.after, self.mark = 0, ""

    def sync(self, *changesets: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Event]]:
        """Sends the changesets and receives all new events.

        Returns a list of verdicts and a list of the new events. A verdict is the server's answer
        to one changeset, as a JSON object.
        """
        verdicts: list[dict[str, Any]] = []
        events: list[Event] = []
        while True:
            body = {
                "device": self.id,
                "sent_at": now(),
                "after": self.after,
                "mark": self.mark,
                "limit": PAGE_EVENTS,
                "changesets": changesets,
            }
            answer = post(self._http, f"/v1/spaces/{SPACE}/sync", self.token, body)
            verdicts += answer["verdicts"]
            events += [msgspec.convert(event, Event) for event in answer["events"]]
            self.after, self.mark = answer["through"], answer["mark"]
            if not answer["more"]:
                return verdicts, events
            changesets = ()


def now() -> str:
    """Returns the current time in UTC as text (RFC 3339), as the protocol needs it."""
    return datetime.now(UTC).isoformat()


def bearer(token: str) -> dict[str, str]:
    """Returns the HTTP header that sends the token."""
    return {"Authorization": f"Bearer {token}"}


def post(http: httpx.Client, path: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
    """Sends a JSON object by POST and returns the JSON answer. Raises `OperatorError` for an
    error status.
    """
    headers = {"Content-Type": "application/json", **bearer(token)}
    response = http.post(path, content=msgspec.json.encode(body), headers=headers)
    if response.is_error:
        raise OperatorError(f"{path} answered {response.status_code}: {response.text}")
    answer: dict[str, Any] = msgspec.json.decode(response.content)
    return answer
