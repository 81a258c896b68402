"""Makes texts of others safe for a terminal.

Many texts come from others: names of devices, ids of records, files to import, messages of a
database. A control character in such a text could move the cursor, hide output, or change what the
user sees. Therefore the streams of the program escape all of them, whichever way a text takes.
"""

from __future__ import annotations

import io
import re
import sys
import unicodedata
from typing import IO

#: What acts on the display instead of being shown: controls, surrogates, marks of direction and
#: other invisible characters, line and paragraph separators, and what Unicode leaves unassigned.
ACTING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
#: A quick test, which finds some harmless characters too.
_SUSPECT = re.compile(r"[^\t\n\x20-\x7e\u00a1-\u00ac\u00ae-\u02ff]")


def printable(text: str) -> str:
    """Returns the text with all characters that act on a terminal escaped, except newlines and
    tabs.

    The escapes are those of JSON (`\\u001b`), so a JSON document keeps its meaning.
    """
    return text if text.isprintable() else _SUSPECT.sub(_escaped, text)


def one_line(text: str) -> str:
    """Returns the text as one line: like `printable`, with a blank for each newline."""
    return printable(text).replace("\n", " ")


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    if unicodedata.category(char) not in ACTING:
        return char
    encoded = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{encoded[n : n + 4]}" for n in range(0, len(encoded), 4))


class PrintableStream(io.TextIOWrapper):
    """A text stream that escapes all characters that act on a terminal.

    `unescaped` is the stream for the colours and bars of the program's own.
    """

    unescaped: IO[str]

    def write(self, text: str) -> int:
        super().write(printable(text))
        return len(text)


def escape_output() -> None:
    """Makes `sys.stdout` and `sys.stderr` escape what acts on a terminal: results, errors, log
    lines, and tracebacks alike."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, PrintableStream):
            escaping = PrintableStream(
                stream.buffer,
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=True,
            )
            escaping.unescaped = stream
            setattr(sys, name, escaping)


def unescaped(stream: IO[str]) -> IO[str]:
    """Returns the stream below a `PrintableStream`, and any other stream itself."""
    return stream.unescaped if isinstance(stream, PrintableStream) else stream
