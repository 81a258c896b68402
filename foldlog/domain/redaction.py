"""Text without the secrets that may have got into it: the last door before logs and errors.

Where a secret is known to be, it is left out from the start. This is for the messages of others,
which quote what they were given: a URL with its password, a header, a token.
"""

from __future__ import annotations

import re

HIDDEN = "***"
_SECRET = re.compile(
    r"""
      (?P<url> ://[^\s:/@"']*: ) [^\s/"']+ (?=@)            # the password in a URL
    | (?P<option> \bpassword["']?\s*[=:]\s* ) (?: '(?:[^'\\]|\\.)*' | [^\s"',;&]+ )
    | (?P<scheme> \b(?:bearer|basic)\s+ ) [\w.~+/=-]{8,}    # what an Authorization header holds
    | (?<![\w-])eyJ[\w-]{5,}\.[\w-]+\.[\w-]*              # a JWT
    | (?<![\w-])foldlog_[\w-]{20,}                         # a token of ours
    """,
    re.VERBOSE | re.IGNORECASE,
)
_HINTS = ("://", "password", "bearer", "basic", "eyj", "foldlog_")


def redacted(text: str) -> str:
    """The text with `***` for what looks like a password or a token."""
    # A line for each request comes through here, and most hold nothing to look for.
    lowered = text.lower()
    if any(hint in lowered for hint in _HINTS):
        return _SECRET.sub(_hidden, text)
    return text


def _hidden(found: re.Match[str]) -> str:
    return next(filter(None, found.groups()), "") + HIDDEN
