"""The repository's URL is defined in one place, and no release is made without it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_jojokey import __version__
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[1]
URL = "https://git.example/acme/airflow-provider-jojokey"
FILES = ("pyproject.toml", "CHANGELOG.md", ".airflow-registry.yaml", "airflow_provider_jojokey/__init__.py")

import repository  # noqa: E402


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Return a checkout that is ready for a release."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    if not repository.repository(tmp_path):
        edit(tmp_path / "pyproject.toml", 'repository = ""', f'repository = "{URL}"')
    registry = tmp_path / ".airflow-registry.yaml"
    edit(registry, "\npackage-name:", f"\nsource-url: {repository.repository(tmp_path)}\npackage-name:")
    edit(tmp_path / "CHANGELOG.md", "## [Unreleased]", f"## [Unreleased]\n\n## [{__version__}] - 2026-12-01")
    return tmp_path


def check(root: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, ROOT / "scripts" / "repository.py", "--root", root, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.returncode, done.stderr


def test_release_check_passes_when_ready(release: Path) -> None:
    assert check(release, "--tag", f"v{__version__}") == (0, "")


@pytest.mark.parametrize(
    "url", ["", "/", "git.example/acme/jojokey", "http://git.example/acme/jojokey", "https://git.example"]
)
def test_release_check_fails_without_repository(release: Path, url: str) -> None:
    edit(
        release / "pyproject.toml",
        f'repository = "{repository.repository(release)}"',
        f'repository = "{url}"',
    )
    code, said = check(release)
    assert code == 1
    assert "[tool.jojokey]" in said


def test_release_check_fails_without_changelog_section(release: Path) -> None:
    edit(release / "CHANGELOG.md", f"## [{__version__}] - 2026-12-01\n", "")
    code, said = check(release)
    assert code == 1
    assert "CHANGELOG.md" in said


def test_release_check_fails_for_tag_of_other_version(release: Path) -> None:
    assert check(release, "--tag", "v99.0.0")[0] == 1


def test_release_check_fails_for_other_registry_url(release: Path) -> None:
    edit(release / ".airflow-registry.yaml", "source-url: ", "source-url: https://git.example/other#")
    assert check(release)[0] == 1


def test_release_workflow_checks_before_it_publishes() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    jobs: dict[str, Any] = workflow["jobs"]

    def ancestors(job: str) -> set[str]:
        needs = jobs[job].get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        return set(needs).union(*map(ancestors, needs)) if needs else set()

    assert any("make release-check" in step.get("run", "") for step in jobs["ready"]["steps"])
    assert "ready" in ancestors("publish")
    assert jobs["publish"]["permissions"] == {"id-token": "write"}


PAGE = """# Title

![The gallery](docs/images/gallery.png)

See [costs](docs/how-to/costs.md#limits), [the site](https://example.com), [below](#below) and
[`generate`](airflow_provider_jojokey/payments/generate.py).

```markdown
[not a link](docs/index.md)
```
"""


def test_standalone_page_links_to_repository() -> None:
    page = repository.standalone(PAGE, URL, ref="v1")
    assert f"![The gallery]({URL}/raw/v1/docs/images/gallery.png)" in page
    assert f"[costs]({URL}/blob/v1/docs/how-to/costs.md#limits)" in page
    assert f"[`generate`]({URL}/blob/v1/airflow_provider_jojokey/payments/generate.py)" in page
    assert "[the site](https://example.com), [below](#below)" in page
    assert "[not a link](docs/index.md)" in page


def test_standalone_page_resolves_links_of_folder() -> None:
    page = repository.standalone("[tutorial](../tutorial.md)", URL, folder="docs/how-to", ref="v1")
    assert page == f"[tutorial]({URL}/blob/v1/docs/tutorial.md)"


def test_standalone_page_has_no_dead_links_without_repository() -> None:
    page = repository.standalone(PAGE, "")
    assert "The gallery" not in page
    assert "See costs, [the site](https://example.com), [below](#below) and\n`generate`." in page


def test_urls_name_no_host_while_repository_is_undecided() -> None:
    assert repository.project_urls("") == {"JojoKey": "https://api.jojokey.com"}
    assert repository.project_urls(URL)["Repository"] == URL


def test_registry_file_names_existing_modules() -> None:
    import importlib

    registry = yaml.safe_load((ROOT / ".airflow-registry.yaml").read_text(encoding="utf-8"))
    listed = [entry["module"] for value in registry.values() if isinstance(value, list) for entry in value]
    assert listed
    for module, _, name in (path.rpartition(".") for path in listed):
        assert hasattr(importlib.import_module(module), name)
