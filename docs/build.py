"""Builds the site of the documentation into build/site: `make docs`.

The pages of docs/ are copied to build/site-source, together with the pages of the repository's top
folder. Their links are adapted to the new place. Zensical then builds the site in strict mode: each
broken link is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "build" / "site-source"
SITE = ROOT / "build" / "site"
#: pages of the top folder -> their name on the site
TOP_PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "five-minutes.md",
    "SECURITY.md": "security.md",
}
#: tags that make a browser fetch something from another host
FETCHING = re.compile(
    r"""<(?:script|img|iframe)\b[^>]*\bsrc="(?:https?:)?//[^>]*>"""
    r"""|<link\b[^>]*\brel="(?:stylesheet|preload|icon|preconnect)"[^>]*\bhref="(?:https?:)?//[^>]*>"""
)
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def site_name(path: Path) -> Path | None:
    """Returns the place of a repository file on the site, or None for an unpublished file."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS)
    name = TOP_PAGES.get(path.name) if path.parent == ROOT else None
    return Path(name) if name else None


def adapt_links(page: Path, text: str) -> str:
    """Points each link at its place on the site. A link to an unpublished file becomes text."""
    here = site_name(page)
    assert here is not None

    def adapted(match: re.Match[str]) -> str:
        words, target, fragment = match[1], match[2], match[3] or ""
        if "://" in target:
            return match[0]
        file = Path(os.path.normpath(page.parent / target))
        if not file.exists():
            sys.exit(f"{page.relative_to(ROOT)} links to {target}, a missing file")
        there = site_name(file / "index.md" if file.is_dir() else file)
        if there is None:
            return words if words.startswith("`") else f"`{words}`"
        return f"[{words}]({os.path.relpath(there, here.parent)}{fragment})"

    return LINK.sub(adapted, text)


def copy_sources() -> None:
    """Fills build/site-source."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(DOCS, SOURCE, ignore=shutil.ignore_patterns("build.py", "generate.py", "__*"))
    for page in [*DOCS.rglob("*.md"), *(ROOT / name for name in TOP_PAGES)]:
        place = site_name(page)
        assert place is not None
        (SOURCE / place).write_text(adapt_links(page, page.read_text("utf-8")), "utf-8")


def main() -> None:
    copy_sources()
    shutil.rmtree(SITE, ignore_errors=True)
    zensical = Path(sys.executable).with_name("zensical")
    done = subprocess.run([zensical, "build", "--clean", "--strict"], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    for page in SITE.rglob("*.html"):
        for tag in FETCHING.findall(page.read_text("utf-8")):
            sys.exit(f"{page.relative_to(SITE)} fetches from another host: {tag}")


if __name__ == "__main__":
    main()
