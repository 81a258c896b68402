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
    """,
    re.VERBOSE | re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text with `***` for what looks like a password or a token."""
    # A line for each request comes through here, and most hold nothing to look for.
    if "://" in text or "assword" in text or "earer" in text or "asic" in text or "eyJ" in text:
        return _SECRET.sub(_hidden, text)
    return text


def _hidden(found: re.Match[str]) -> str:
    return next(filter(None, found.groups()), "") + HIDDEN
