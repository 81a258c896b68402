"""Counts how plain the English of code and pages is: `python tests/prose.py [FOLDER|FILE ...]`.

It reads docstrings, comments and Markdown pages.

Two shares of all sentences are printed for each top folder: sentences with a vague pronoun (what,
who, nobody ...), and sentences with a negation. A reader takes both kinds slower.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VAGUE = re.compile(r"\b(what|whatever|who|whom|whoever|nobody|nothing)\b", re.IGNORECASE)
NEGATED = re.compile(r"\b(no|not|never|none|neither|nor|cannot|without)\b|n't\b", re.IGNORECASE)
_CODE = re.compile(r"``.*?``|`[^`]*`|\bhttps?://\S+", re.DOTALL)
_END = re.compile(r"(?<=[.!?:;])\s+|\n\s*\n|\n(?=\s*[*+-] )")


@dataclass(frozen=True)
class Sentence:
    """One sentence of a docstring or a comment, and its place in the code."""

    path: Path
    line: int
    text: str

    @property
    def is_vague(self) -> bool:
        return bool(VAGUE.search(self.text))

    @property
    def is_negated(self) -> bool:
        return bool(NEGATED.search(self.text))


def sentences_of(path: Path) -> Iterator[Sentence]:
    """Yields the sentences of a page, or of a Python file: docstrings first, then comments."""
    source = path.read_text("utf-8")
    if path.suffix == ".md":
        texts = list(_paragraphs(source))
    else:
        texts = [*_docstrings(source), *_comments(source)]
    for line, text in texts:
        for sentence in _END.split(_CODE.sub("X", text)):
            if len(sentence.split()) >= 3:
                yield Sentence(path, line, " ".join(sentence.split()))


def _docstrings(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yields each block of comment lines as one text."""
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if block and line != last + 1:
            yield first, "\n".join(block)
            block = []
        if not block:
            first = line
        block.append(token.string.lstrip("#: "))
        last = line
    if block:
        yield first, "\n".join(block)


def _paragraphs(source: str) -> Iterator[tuple[int, str]]:
    """Yields each paragraph, item of a list and cell of a table, without blocks of code."""
    source = re.sub(r"^```.*?^```$|<!--.*?-->|^ {4}\S.*?$", _blank, source, flags=re.M | re.S)
    for found in re.finditer(r"(?:^[^\n]*\S[^\n]*\n?)+", source, re.MULTILINE):
        line = source.count("\n", 0, found.start()) + 1
        text = re.sub(r"^\|.*", lambda row: row[0].replace("|", "\n\n"), found[0], flags=re.M)
        text = re.sub(r"\]\([^)]*\)|[\[*#]", "", text)
        yield line, re.sub(r"\n(\d+\. |- )", r"\n\n", text)


def _blank(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")


def files_of(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    return sorted([*folder.rglob("*.py"), *folder.rglob("*.md")])


def main(arguments: list[str]) -> None:
    """Prints the shares; with `-v` also each sentence that counts."""
    is_verbose = "-v" in arguments
    folders = [Path(one) for one in arguments if one != "-v"] or [Path("foldlog")]
    for folder in folders:
        found = [one for path in files_of(folder) for one in sentences_of(path)]
        if not found:
            continue
        vague = [one for one in found if one.is_vague]
        negated = [one for one in found if one.is_negated]
        if is_verbose:
            for one in sorted({*vague, *negated}, key=lambda one: (str(one.path), one.line)):
                mark = ("v" if one.is_vague else "-") + ("n" if one.is_negated else "-")
                print(f"{mark} {one.path}:{one.line}: {one.text}")
        print(
            f"{folder}: {len(found)} sentences, {len(vague) / len(found):.1%} vague, "
            f"{len(negated) / len(found):.1%} negated"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
