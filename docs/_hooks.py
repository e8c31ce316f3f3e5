"""What a page says differently on the site than in the repository."""

from __future__ import annotations

import os.path
import re
from typing import Any

_ROLE = re.compile(r":(?:class|meth|func|data|attr|mod|exc):(?=<code>)")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make plain text of links to files that are in the repository only."""
    folder = os.path.dirname(page.file.src_uri)

    def text(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(folder, link[2]))
        return link[1] if target.startswith("..") else link[0]

    return _LINK.sub(text, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Take Sphinx's roles out of docstrings, which editors understand and this site does not."""
    return _ROLE.sub("", html)
