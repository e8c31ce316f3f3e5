"""Generate links to the repository. Its URL is defined once, in ``pyproject.toml``.

``python scripts/repository.py`` lists the missing prerequisites of a release, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]

_TARGET = r"\((?!https?:|mailto:|#)([^)\s]+)\)"
_IMAGE = re.compile(r"^!\[([^\]]*)\]" + _TARGET + r"\n*", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]" + _TARGET)


def repository(root: Path = ROOT) -> str:
    """Return the repository's URL without a trailing slash; empty while it is undecided."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return str(project["tool"]["jojokey"]["repository"]).rstrip("/")


def version(root: Path = ROOT) -> str:
    """Return the package's version."""
    source = (root / "airflow_provider_jojokey" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise ValueError("airflow_provider_jojokey/__init__.py has no __version__")
    return found[1]


def project_urls(url: str) -> dict[str, str]:
    """Return the links for a package index.

    :param url: the repository's URL; empty while it is undecided
    """
    urls = {"JojoKey": "https://api.jojokey.com"}
    if url:
        urls |= {
            "Repository": url,
            "Documentation": f"{url}/tree/v{version()}/docs",
            "Changelog": f"{url}/blob/v{version()}/CHANGELOG.md",
            "Issues": f"{url}/issues",
        }
    return urls


def standalone(markdown: str, url: str, folder: str = "", ref: str | None = None) -> str:
    """Return Markdown that works outside the repository, with absolute links.

    :param markdown: the page
    :param url: the repository's URL. While it is empty, images are left out and links become plain text
    :param folder: the page's folder, relative to the repository
    :param ref: the tag or branch to link to; by default the version's tag
    """
    ref = ref or f"v{version()}"

    def absolute(kind: str, target: str) -> str:
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        return f"{url}/{kind}/{ref}/{path}" + (f"#{anchor}" if anchor else "")

    def image(found: re.Match[str]) -> str:
        end = found[0][found[0].rindex(")") + 1 :]
        return f"![{found[1]}]({absolute('raw', found[2])}){end}" if url else ""

    def link(found: re.Match[str]) -> str:
        return f"[{found[1]}]({absolute('blob', found[2])})" if url else found[1]

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [_LINK.sub(link, _IMAGE.sub(image, part)) for part in parts[::2]]
    return "".join(parts)


def problems(root: Path = ROOT, tag: str = "") -> list[str]:
    """Return the missing prerequisites of a release, as sentences.

    :param root: the checkout
    :param tag: the Git tag of the release, if it exists
    """
    found = []
    registry = (root / ".airflow-registry.yaml").read_text(encoding="utf-8")
    url = urlsplit(repository(root))
    if not repository(root):
        found.append("The repository is not decided. Set repository in [tool.jojokey] of pyproject.toml.")
    elif url.scheme != "https" or not url.netloc or not url.path.strip("/") or url.query or url.fragment:
        found.append(
            f"{repository(root)!r} in [tool.jojokey] of pyproject.toml is not a repository's https URL."
        )
    elif f"\nsource-url: {repository(root)}\n" not in registry:
        found.append(f'.airflow-registry.yaml has no line "source-url: {repository(root)}".')
    release = version(root)
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(release)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        found.append(f'CHANGELOG.md has no section "## [{release}] - YYYY-MM-DD".')
    if tag and tag != f"v{release}":
        found.append(f"The tag is {tag}, but the package's version is {release}.")
    return found


def main() -> int:
    """Print the missing prerequisites of a release; return 1 if there are any."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    parser.add_argument("--tag", default="", help="the release's Git tag, compared with the version")
    options = parser.parse_args()
    found = problems(options.root, options.tag)
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
