"""Removes passwords and tokens from texts before they are logged or reported as errors.

Foldlog's own messages contain no secrets. This module is for the messages of libraries, which may
quote a URL with a password, a header or a token.
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
    """Returns the text with each password and token replaced by `***`."""
    # Fast path: this runs for each request, and few lines contain a secret.
    lowered = text.lower()
    if any(hint in lowered for hint in _HINTS):
        return _SECRET.sub(_hidden, text)
    return text


def _hidden(found: re.Match[str]) -> str:
    return next(filter(None, found.groups()), "") + HIDDEN
