"""Generate the package's metadata: links to the repository, and a long description without relative links."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class LinksHook(MetadataHookInterface):
    """Set ``urls`` and ``readme`` from the repository's URL in ``[tool.jojokey]``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the dynamic fields to the project's metadata."""
        root = Path(self.root)
        sys.path.insert(0, str(root / "scripts"))
        try:
            from repository import project_urls, repository, standalone
        finally:
            sys.path.pop(0)
        url = repository(root)
        readme = (root / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = project_urls(url)
        metadata["readme"] = {"content-type": "text/markdown", "text": standalone(readme, url)}
