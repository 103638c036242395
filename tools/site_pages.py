"""A mkdocs hook: the top-level pages join the site, and links are checked against the repository.

Pages are written to be read on the repository's own page as well, so their links are relative to where a file really
lies. A link to another page of the site is rewritten to its place there. One to a source file or a folder that exists
becomes plain text, since the site has no sources. Anything else is left as it is, and `mkdocs build --strict` fails.

Every decision note has to be in the list of them.

Where `make docs` has installed the script that draws diagrams, the site brings it along.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
MERMAID = Path(sys.prefix, "mermaid.min.js")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]\n]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


log = logging.getLogger("mkdocs.hooks.site_pages")  # below mkdocs: a warning fails a strict build


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    for name, page in TOP_LEVEL.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    notes = ROOT / "docs" / "decisions"
    listed = (notes / "README.md").read_text()
    for note in sorted(notes.glob("0*.md")):
        if f"({note.name})" not in listed:
            log.warning("decisions/README.md does not list %s", note.name)
    if MERMAID.exists():
        files.append(File.generated(config, f"assets/{MERMAID.name}", abs_src_path=str(MERMAID)))
        config.extra_javascript.append(f"assets/{MERMAID.name}")
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """The page's text with its links as the site needs them; code blocks stay."""
    here = {site: Path(name) for name, site in TOP_LEVEL.items()}.get(
        page.file.src_uri, Path("docs", page.file.src_uri)
    )
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [_linked(markdown[end : fence.start()], here, page, files), fence.group()]
        end = fence.end()
    return "".join([*parts, _linked(markdown[end:], here, page, files)])


def _linked(text: str, here: Path, page: Page, files: Files) -> str:
    def replaced(match: re.Match[str]) -> str:
        if "://" in match["target"]:
            return match.group()
        path = os.path.normpath(here.parent / match["target"])
        site = TOP_LEVEL.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if site is not None and files.get_file_from_path(site) is not None:
            relative = os.path.relpath(site, Path(page.file.src_uri).parent)
            return f"{match['image']}[{match['text']}]({relative}{match['anchor'] or ''})"
        return match["text"] if (ROOT / path).exists() else match.group()

    return LINK.sub(replaced, text)
