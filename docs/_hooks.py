"""MkDocs hooks: adapt pages that are also read in the repository."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from repository import repository

_ROLE = re.compile(r":(?:class|meth|func|data|attr|mod|exc):(?=<code>)")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:#]+)(#[^)]*)?\)")


def on_config(config: Any, **_: Any) -> Any:
    """Link to the repository, once it is decided."""
    if url := repository():
        config.repo_url, config.repo_name = url, "Repository"
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave ``docs/`` to the repository; make them plain text while it is undecided."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))
    url = repository()

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[2]))
        if target.startswith("docs/"):
            return found[0]
        return f"[{found[1]}]({url}/blob/main/{target}{found[3] or ''})" if url else found[1]

    return _LINK.sub(link, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Remove Sphinx roles from docstrings: editors understand them, and this site does not."""
    return _ROLE.sub("", html)
