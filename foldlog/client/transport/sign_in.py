"""Gives each request its access token, and notices when the app has another token."""

from __future__ import annotations

import re
from collections.abc import Callable

from foldlog.client.errors import BadToken

#: an access token, or a function that returns the current one, because tokens may expire
Token = str | Callable[[], str] | None

_VISIBLE = re.compile(r"[\x21-\x7e]+")


class SignIn:
    """Holds the access token of the app, or the function that returns this token.

    The constructor raises `BadToken` if the token is a text that no header can carry. The messages
    of `BadToken` never contain the token.
    """

    def __init__(self, token: Token):
        self._token: Token = None
        self._refused: str | None = None  #: the last token that the server did not accept
        self.replace(token)

    def replace(self, token: Token) -> None:
        """Uses another token from now on. Raises `BadToken` as the constructor does."""
        self._token = token if callable(token) else _checked(token)

    def current(self) -> str | None:
        """Returns the token for a request, or `None` if the app has no token.

        Raises `BadToken` if the function of the app fails, or returns a token that no header can
        carry.
        """
        if not callable(self._token):
            return self._token
        try:
            token = self._token()
        except Exception as exc:
            raise BadToken(f"the token function failed with {type(exc).__name__}") from exc
        return _checked(token)

    def note_refused(self, token: str | None) -> None:
        """Remembers a token that the server did not accept."""
        self._refused = token

    @property
    def has_changed(self) -> bool:
        """Whether the app has another token than the one that the server did not accept."""
        try:
            return self.current() != self._refused
        except BadToken:
            return False


def _checked(token: object) -> str | None:
    """Returns the token, or `None` for an empty one. Raises `BadToken` for a token that no header
    can carry.
    """
    if token is None or token == "":
        return None
    if not isinstance(token, str):
        raise BadToken(
            f"the token must be a text, or a function that returns one, not {type(token).__name__}"
        )
    if token != token.strip():
        raise BadToken("the token begins or ends with a space or a line break: use token.strip()")
    if not _VISIBLE.fullmatch(token):
        raise BadToken("the token has a character that a header cannot carry: it must be ASCII")
    return token
