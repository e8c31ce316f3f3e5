"""Provider metadata, checked with Airflow's schemas, commands and code."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import airflow_provider_jojokey
from airflow_provider_jojokey.exceptions import JojoKeyRequestError
from airflow_provider_jojokey.get_provider_info import DISTRIBUTION, get_provider_info
from airflow_provider_jojokey.hooks import connection as connection_module
from airflow_provider_jojokey.hooks.jojokey import ConnectionSettings, JojoKeyHook
from airflow_provider_jojokey.settings import Settings
from airflow_provider_jojokey.store.spool_directory import default_root
from tests.support.patience import PATIENCE

INFO = get_provider_info()
(CONNECTION,) = INFO["connection-types"]


def schema(name: str) -> dict[str, Any]:
    loaded = json.loads((files("airflow") / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def airflow(tmp_path: Path, *arguments: str) -> str:
    """Run an Airflow command with a separate home."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "COLUMNS": "300",
    }
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_provider_info_follows_the_schema() -> None:
    jsonschema.validate(INFO, schema("provider_info.schema.json"))


def test_connection_form_follows_the_schema() -> None:
    whole = schema("provider.yaml.schema.json")
    form = {**whole["properties"]["connection-types"], "definitions": whole.get("definitions", {})}
    jsonschema.validate(INFO["connection-types"], form)


def test_settings_follow_the_schema() -> None:
    whole = schema("provider.yaml.schema.json")
    jsonschema.validate(
        INFO["config"], {**whole["properties"]["config"], "definitions": whole.get("definitions", {})}
    )


def test_entry_point_finds_the_provider() -> None:
    (found,) = (
        entry_point
        for entry_point in entry_points(group="apache_airflow_provider")
        if entry_point.dist and entry_point.dist.name == DISTRIBUTION
    )
    assert found.load()() == INFO
    assert found.dist is not None
    assert found.dist.version == airflow_provider_jojokey.__version__ == INFO["versions"][0]
    assert INFO["package-name"] == found.dist.name


def test_provider_info_names_existing_objects() -> None:
    for kind in ("hooks", "operators", "triggers"):
        for item in INFO.get(kind, []):
            for module in item["python-modules"]:
                importlib.import_module(module)
    for name in INFO.get("extra-links", []):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


def test_connection_type_matches_the_hook() -> None:
    module, _, name = CONNECTION["hook-class-name"].rpartition(".")
    assert getattr(importlib.import_module(module), name) is JojoKeyHook
    assert CONNECTION["connection-type"] == JojoKeyHook.conn_type
    assert CONNECTION["hook-name"] == JojoKeyHook.hook_name
    assert "_" not in JojoKeyHook.conn_type


def test_old_and_new_airflow_show_the_same_form() -> None:
    old = JojoKeyHook.get_ui_field_behaviour()
    assert {name.replace("_", "-"): value for name, value in old.items()} == CONNECTION["ui-field-behaviour"]


def test_form_fields_match_the_hook() -> None:
    assert (
        set(CONNECTION["conn-fields"]) == set(connection_module._EXTRAS) == set(connection_module._EXPECTED)
    )
    settings = set(ConnectionSettings.__struct_fields__)
    assert set(CONNECTION["conn-fields"]) == settings - {"token", "host", "warnings"}


@pytest.mark.parametrize("name", CONNECTION["conn-fields"])
def test_form_fields_may_be_empty(name: str) -> None:
    field = CONNECTION["conn-fields"][name]
    assert "null" in field["schema"]["type"]
    assert "Empty: " in field["description"]
    default = ConnectionSettings(token="", host=None).__getattribute__(name)
    match = re.search(r"Empty: ([^.]+(?:\.\d+)?)", field["description"])
    assert match
    if isinstance(default, float):
        assert match[1] == f"{default:g}"
    elif default is not None:
        assert match[1] == str(default).lower()


@pytest.mark.parametrize("name", CONNECTION["conn-fields"])
def test_hook_accepts_values_of_the_form(name: str) -> None:
    field = CONNECTION["conn-fields"][name]["schema"]
    for limit in ("minimum", "maximum"):
        if limit in field:
            assert connection_module._EXTRAS[name](field[limit]) == field[limit]


def test_token_field_has_its_label() -> None:
    behaviour = CONNECTION["ui-field-behaviour"]
    assert "password" not in behaviour["hidden-fields"]
    assert behaviour["relabeling"]["password"] == "Token"
    assert behaviour["placeholders"]["password"].startswith("sk-")


def test_provider_info_imports_nothing_heavy() -> None:
    code = (
        "from airflow_provider_jojokey.get_provider_info import get_provider_info\n"
        "get_provider_info()\nimport sys\nprint(*sys.modules)"
    )
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"airflow", "requests", "boto3", "pybase64", "PIL"} & set(modules)


def test_airflow_lists_the_provider(tmp_path: Path) -> None:
    assert DISTRIBUTION in airflow(tmp_path, "providers", "list", "-o", "plain")


def test_airflow_shows_the_provider(tmp_path: Path) -> None:
    output = airflow(tmp_path, "providers", "get", DISTRIBUTION, "--full", "-o", "json")
    assert "JojoKey" in output
    assert airflow_provider_jojokey.__version__ in output


def test_airflow_knows_the_connection_type(tmp_path: Path) -> None:
    output = airflow(tmp_path, "providers", "hooks", "-o", "plain")
    (row,) = (line for line in output.splitlines() if "JojoKeyHook" in line)
    assert row.split()[0] == "jojokey"
    assert "jojokey_conn_id" in row


def test_lowest_versions_are_tested() -> None:
    root = Path(__file__).parents[1]
    allowed = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    tested = dict(re.findall(r"(?m)^(\S+)==([\w.]+)", (root / "constraints-lowest.txt").read_text()))
    lowest = dict(requirement.split(">=") for requirement in allowed)
    untested = {name: low for name, low in lowest.items() if not f"{tested[name]}.".startswith(f"{low}.")}
    assert not untested


NUMBERS = {
    "spool_max_age": 604_800.0,
    "upload_patience": 600.0,
    "longest_generation": 300.0,
    "thumbnail_cache_bytes": 536_870_912,
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "1e300", "ten", "5 min", "0x10"])
def test_number_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"AIRFLOW__JOJOKEY__{name.upper()}", text)
    with pytest.raises(JojoKeyRequestError, match=rf"\[jojokey\] {name} must be a number from 0") as caught:
        Settings.from_airflow_config()
    largest = caught.value.message.partition("for no limit, write ")[2].partition(".")[0]
    monkeypatch.setenv(f"AIRFLOW__JOJOKEY__{name.upper()}", largest)
    assert getattr(Settings.from_airflow_config(), name) == int(largest)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("1e3", 1000), (" 90 ", 90), ("", None)])
def test_number_of_a_setting_is_used(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: float | None
) -> None:
    monkeypatch.setenv(f"AIRFLOW__JOJOKEY__{name.upper()}", text)
    assert getattr(Settings.from_airflow_config(), name) == (NUMBERS[name] if expected is None else expected)


def test_defaults_are_those_of_the_configuration() -> None:
    settings = Settings.from_airflow_config()
    assert {name: getattr(settings, name) for name in NUMBERS} == NUMBERS


@pytest.mark.parametrize("name", ["spool_directory", "thumbnail_directory"])
@pytest.mark.parametrize("value", ["spool", "s3://bucket/spool", "file:///spool", "~no-such-user/spool"])
def test_directory_in_settings_is_an_absolute_path(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"AIRFLOW__JOJOKEY__{name.upper()}", value)
    with pytest.raises(JojoKeyRequestError, match=rf"\[jojokey\] {name} "):
        Settings.from_airflow_config()


def test_empty_directory_in_settings_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__JOJOKEY__SPOOL_DIRECTORY", " ")
    monkeypatch.setenv("AIRFLOW__JOJOKEY__THUMBNAIL_DIRECTORY", "~/thumbnails")
    settings = Settings.from_airflow_config()
    assert settings.spool_directory == default_root()
    assert settings.thumbnail_directory == Path.home() / "thumbnails"
