"""Estimates how long the matching of a pattern takes, from its text."""

from __future__ import annotations

import re

#: Each of these is one part of a pattern: an escape, a class, an opening or closing bracket, a
#: repetition, or any other character.
_PART = re.compile(
    r"\\(?:[pP]\{[^}]*\}|u\{[^}]*\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|c[a-zA-Z]|k<[^>]*>|.)"
    r"|\[\^?\]?(?:\\.|[^\]\\])*\]"
    r"|\((?:\?(?:<[A-Za-z_]\w*>|[a-zA-Z^-]*:|<?[=!]))?"
    r"|\{(?P<least>\d+)(?:(?P<comma>,)(?P<most>\d*))?\}"
    r"|.",
    re.DOTALL,
)
SIZE_MAX = 1_000_000


def pattern_size(pattern: str) -> int:
    """Returns how many parts of the pattern the matcher may have to look at for one character, 1
    to `SIZE_MAX`. A part is a character or a class of characters. A repetition such as `{20}`
    counts each time.

    A pattern whose match begins at the start, and that has neither choices nor repetitions of a
    variable length, has only one part to look at.
    """
    sizes = [0]  #: of each open group
    last = 0  #: the size of the last part, which a repetition repeats
    is_fixed = pattern.startswith("^")
    for found in _PART.finditer(pattern):
        text = found[0]
        if text[0] == "(":
            sizes.append(0)
            last = 0
        elif text[0] == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif found["least"] is not None:
            least = int(found["least"])
            most = max(least, int(found["most"] or 0), 1)
            sizes[-1] += last * (min(most, SIZE_MAX) - 1)
            last *= most
            is_fixed = is_fixed and found["comma"] is None
        elif text in "*+?|":
            is_fixed = False
        elif text not in "^$":
            last = 1
            sizes[-1] += 1
        sizes[-1] = min(sizes[-1], SIZE_MAX)
        last = min(last, SIZE_MAX)
    return 1 if is_fixed else min(max(sum(sizes), 1), SIZE_MAX)
