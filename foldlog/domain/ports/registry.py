"""The port to the devices and tokens of each space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from ..access import Device, Grant, Token
from ..errors import DeviceRevoked, FoldlogError
from ..limits import LIMITS
from .cursors import Page, T
from .event_store import SpaceId

#: the reason for revoking a token if its grant failed in one of several spaces
GRANT_FAILED = "the grant failed in another space"


class Registry(ABC):
    """The devices and tokens of each space. Each change is an event in the space's log.

    Tokens of `EVERY_SPACE` belong to an operator and are outside the logs. Every process refuses
    pushes by a revoked device at once; other requests are refused within `CALLER_SECONDS_MAX`
    (api/http/access.py). Each method that changes something raises `StorageUnavailable` and
    `OutcomeUnknown`.
    """

    @abstractmethod
    def token(self, space: SpaceId, digest: bytes) -> Token | None:
        """The token with this digest that is valid for the space or for every space.

        Revoked tokens are returned too.
        """

    @abstractmethod
    def is_revoked(self, space: SpaceId, device: str) -> bool:
        """Whether the device was revoked."""

    @abstractmethod
    def grant(self, space: SpaceId, id: str, digest: bytes, grant: Grant, by: str | None) -> Token:
        """Grants a token, registers its device, and creates the space if necessary.

        The same `id` in several spaces means one token. Raises `DeviceRevoked`.
        """

    def grant_all(
        self, spaces: Iterable[SpaceId], id: str, digest: bytes, grant: Grant, by: str | None
    ) -> list[Token]:
        """Grants one token for all of these spaces.

        Each space has its own transaction. If one fails, the token is revoked again in the spaces
        before it. Raises the errors of `grant`.
        """
        wanted = list(dict.fromkeys(spaces))
        for space in wanted:
            if grant.device is not None and self.is_revoked(space, grant.device):
                raise DeviceRevoked(f"the device {grant.device} was revoked")
        granted: list[Token] = []
        try:
            for space in wanted:
                granted.append(self.grant(space, id, digest, grant, by))
        except BaseException:
            # Includes the space that failed, because its commit may have succeeded.
            for space in wanted[: len(granted) + 1]:
                with suppress(FoldlogError):
                    self.revoke_token(space, id, reason=GRANT_FAILED, by=by)
            raise
        return granted

    @abstractmethod
    def grant_first(self, digest: bytes, grant: Grant, by: str) -> Token | None:
        """Grants the token `FIRST_TOKEN` of every space, if no admin of every space ever existed.

        If several callers do this at once, one of them receives the token, the others `None`.
        """

    @abstractmethod
    def revoke_token(self, space: SpaceId, id: str, *, reason: str, by: str | None = None) -> Token:
        """Revokes a token in this space only. A repeated call has no effect.

        Raises `UnknownToken`.
        """

    @abstractmethod
    def spaces_of(self, id: str) -> list[SpaceId]:
        """The spaces in which a token with this id was ever granted, by name.

        For commands of an operator; too slow for requests.
        """

    @abstractmethod
    def tokens_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Token]:
        """A page of the space's tokens, in the order of their grants.

        Raises `InvalidRequest` for an invalid cursor.
        """

    def tokens(self, space: SpaceId) -> list[Token]:
        """All tokens of the space. For commands of an operator; too large for requests."""
        return _all(partial(self.tokens_page, space))

    @abstractmethod
    def register(
        self, space: SpaceId, device: str, *, name: str | None = None, by: str | None = None
    ) -> Device:
        """Registers a device, and creates the space if necessary.

        A repeated call with the same name has no effect. Raises `DeviceRevoked`.
        """

    @abstractmethod
    def revoke_device(
        self, space: SpaceId, device: str, *, reason: str, by: str | None = None
    ) -> Device:
        """Revokes a device for ever: the space refuses all its requests, with any token.

        The device may be unknown so far. A repeated call has no effect. Raises `UnknownSpace`.
        """

    @abstractmethod
    def devices_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Device]:
        """A page of the devices that were registered or revoked, or have pushed, by id.

        Raises `UnknownSpace`, and `InvalidRequest` for an invalid cursor.
        """

    def devices(self, space: SpaceId) -> list[Device]:
        """All devices of the space. For commands of an operator; too large for requests.

        Raises `UnknownSpace`.
        """
        return _all(partial(self.devices_page, space))


def _all(page_of: Callable[..., Page[T]]) -> list[T]:
    page = page_of(limit=LIMITS.page_records_max, cursor=None)
    found = page.items
    while page.cursor is not None:
        page = page_of(limit=LIMITS.page_records_max, cursor=page.cursor)
        found += page.items
    return found
