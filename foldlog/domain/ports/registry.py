"""The port `Registry`: the devices and tokens of each space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from ..access import Device, Grant, Token
from ..enrolment import Claim, Enrolment
from ..errors import DeviceRevoked, FoldlogError
from ..limits import LIMITS
from .cursors import Page, T
from .event_store import SpaceId

#: the reason for revoking a token if its grant failed in one of several spaces
GRANT_FAILED = "the grant failed in another space"


class Registry(ABC):
    """Stores the devices and tokens of each space. Each change is also an event in the log of the
    space.

    Tokens for `EVERY_SPACE` belong to an operator. Their grants and revocations are left out of the
    logs. After a device was revoked, every process refuses its pushes at once, and its other
    requests within `CALLER_SECONDS_MAX` (api/http/access.py). Each method that changes data raises
    `StorageUnavailable` if the database is unreachable, and `OutcomeUnknown` if the change may have
    been stored.
    """

    @abstractmethod
    def token(self, space: SpaceId, digest: bytes) -> Token | None:
        """Returns the token with this digest if it was granted for this space or for every space.
        Otherwise returns `None`.

        The token may be revoked or expired, so the caller must check that it is valid.
        """

    @abstractmethod
    def is_revoked(self, space: SpaceId, device: str) -> bool:
        """Returns whether the device was revoked in this space."""

    @abstractmethod
    def grant(self, space: SpaceId, id: str, digest: bytes, grant: Grant, by: str | None) -> Token:
        """Grants a token in a space. Registers the token's device, and creates the space if it is
        missing.

        A token for several spaces is granted in each of them with the same `id`. Raises
        `DeviceRevoked` if the device was revoked in the space.
        """

    def grant_all(
        self, spaces: Iterable[SpaceId], id: str, digest: bytes, grant: Grant, by: str | None
    ) -> list[Token]:
        """Grants one token in all of these spaces.

        Each space is changed in a separate transaction. If the grant fails in one space, the token
        is revoked again in the spaces where it was already granted. Raises the errors of `grant`.
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
        """Grants a token for every space, with the id `FIRST_TOKEN`. `digest` is the digest of its
        secret. Returns the granted `Token`. If an admin token for every space was ever granted
        before, the method grants no token and returns `None`.

        If several processes call this method at the same time, only one of them gets the `Token`,
        and the others get `None`.
        """

    @abstractmethod
    def issue_code(self, space: SpaceId, code: bytes, enrolment: Enrolment) -> None:
        """Stores an enrolment that a device may claim with a code. `code` is the code's digest.

        The call appends no event and creates no space. Raises `InvalidRequest` if a member of the
        enrolment is invalid, and `SpaceImporting` if the space is being imported.
        """

    @abstractmethod
    def enrol(self, space: SpaceId, code: bytes, claim: Claim) -> Token:
        """Registers the device of `claim`, and grants it a token. `code` is the digest of the code
        that the device has. Creates the space if it is missing.

        A repetition of the same claim returns the same token, which may be revoked by then. Raises
        `EnrolmentRefused` if the code is unknown, expired, or claimed by another device or digest.
        Raises `DeviceTaken` if the space knows the device, and `InvalidRequest` if another token
        has the same digest.
        """

    @abstractmethod
    def trade(self, space: SpaceId, digest: bytes, claim: Claim) -> Token:
        """Registers the device of `claim`, and grants it a token in place of the token with this
        `digest`. The earlier token stays valid, because the device with the earlier id may use it.

        A repetition of the same claim returns the same token. Raises `EnrolmentRefused` if the
        earlier token is unknown, revoked, expired, not a device's, or was traded by another claim.
        Raises `DeviceRevoked` if the earlier device was revoked, and `DeviceTaken` and
        `InvalidRequest` as `enrol` does.
        """

    @abstractmethod
    def revoke_token(self, space: SpaceId, id: str, *, reason: str, by: str | None = None) -> Token:
        """Revokes a token in this space; the token stays valid in other spaces. If the token is
        already revoked here, the call has no effect.

        Raises `UnknownToken` if the space has no token with this id.
        """

    @abstractmethod
    def spaces_of(self, id: str) -> list[SpaceId]:
        """Returns the names of all spaces in which a token with this id was ever granted, in
        alphabetical order.

        The call is too slow for requests, so only an operator's commands use it.
        """

    @abstractmethod
    def tokens_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Token]:
        """Returns a page of the space's tokens, in the order in which they were granted.

        Raises `InvalidRequest` for an invalid cursor.
        """

    def tokens(self, space: SpaceId) -> list[Token]:
        """Returns all tokens of the space. The list may be too large for requests, so only an
        operator's commands use it."""
        return _all(partial(self.tokens_page, space))

    @abstractmethod
    def register(
        self, space: SpaceId, device: str, *, name: str | None = None, by: str | None = None
    ) -> Device:
        """Registers a device in a space. Creates the space if it is missing.

        Registering the device again with the same name has no effect. Raises `DeviceRevoked` if the
        device was revoked in the space.
        """

    @abstractmethod
    def revoke_device(
        self, space: SpaceId, device: str, *, reason: str, by: str | None = None
    ) -> Device:
        """Revokes a device in a space for ever: the space then refuses every request of the device,
        with any token.

        A device that the space does not know can be revoked too. If the device is already revoked,
        the call has no effect. Raises `UnknownSpace` if the space is missing.
        """

    @abstractmethod
    def devices_page(self, space: SpaceId, *, limit: int, cursor: str | None) -> Page[Device]:
        """Returns a page of the devices that were registered or revoked in the space, or have
        pushed to it. Devices are ordered by id.

        Raises `UnknownSpace` if the space is missing, and `InvalidRequest` if the cursor is
        invalid.
        """

    def devices(self, space: SpaceId) -> list[Device]:
        """Returns all devices of the space. The list may be too large for requests, so only an
        operator's commands use it.

        Raises `UnknownSpace` if the space is missing.
        """
        return _all(partial(self.devices_page, space))


def _all(page_of: Callable[..., Page[T]]) -> list[T]:
    page = page_of(limit=LIMITS.page_records_max, cursor=None)
    found = page.items
    while page.cursor is not None:
        page = page_of(limit=LIMITS.page_records_max, cursor=page.cursor)
        found += page.items
    return found
