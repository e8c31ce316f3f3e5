"""Connections as URIs, JSON and forms: no part of them is lost silently."""

from __future__ import annotations

import json
import logging
from typing import Any
from urllib.parse import quote

import pytest
from airflow.sdk.definitions.connection import Connection
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_jojokey.exceptions import JojoKeyConnectionError
from airflow_provider_jojokey.hooks.jojokey import ConnectionSettings, JojoKeyHook
from airflow_provider_jojokey.img2.addresses import base_url_of

TOKEN = "sk-only-for-tests-0123456789"


def base_url(connection: Connection) -> str:
    return base_url_of(ConnectionSettings.of(connection).host)


def from_json(**fields: Any) -> Connection:
    return Connection.from_json(
        json.dumps({"conn_type": "jojokey", "password": TOKEN, **fields}), "jojokey_test"
    )


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("gw.example.com/prefix", "https://gw.example.com/prefix"),
        ("gw.example.com/prefix/v1", "https://gw.example.com/prefix"),
        ("gw.example.com/prefix/v1/", "https://gw.example.com/prefix"),
        ("gw.example.com/Prefix/Deep/v1", "https://gw.example.com/Prefix/Deep"),
        ("gw.example.com:8443/prefix/v1", "https://gw.example.com:8443/prefix"),
        ("gw.example.com/prefix%2Fv1", "https://gw.example.com/prefix"),
        ("gw.example.com%2Fprefix%2Fv1", "https://gw.example.com/prefix"),
        ("gw.example.com%2Fprefix:8443", "https://gw.example.com:8443/prefix"),
        ("gw.example.com%2Fa/b/v1", "https://gw.example.com/a/b"),
        ("https%3A%2F%2Fgw.example.com%2Fprefix%2Fv1", "https://gw.example.com/prefix"),
        ("http%3A%2F%2Fgw.example.com%3A81%2Fprefix", "http://gw.example.com:81/prefix"),
        ("gw.example.com/my%20prefix/v1", "https://gw.example.com/my%20prefix"),
        ("gw.example.com/%E5%9B%BE/v1", "https://gw.example.com/%E5%9B%BE"),
        ("gw.example.com//prefix", "https://gw.example.com/prefix"),
        ("gw.example.com/v1?read_timeout=400", "https://gw.example.com"),
        ("gw.example.com/prefix/v1?read_timeout=400", "https://gw.example.com/prefix"),
        ("gw.example.com/HTTP", "http://gw.example.com"),
        ("[::1]:8080/prefix/v1", "https://[::1]:8080/prefix"),
        ("/prefix/v1", "https://api.jojokey.com/prefix"),
        (":8443", "https://api.jojokey.com:8443"),
        ("/v1", "https://api.jojokey.com"),
    ],
)
def test_path_of_a_connection_uri_is_kept(place: str, expected: str) -> None:
    connection = Connection.from_uri(f"jojokey://:{TOKEN}@{place}", "jojokey_test")
    assert base_url(connection) == expected
    # Airflow writes connections as URIs itself, for example with `airflow connections get`.
    assert base_url(Connection.from_uri(connection.get_uri(), "jojokey_test")) == expected


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_uri_with_its_own_scheme_keeps_its_path(scheme: str) -> None:
    uri = f"jojokey://{scheme}://:{TOKEN}@gw.example.com:8080/prefix/v1"
    assert base_url(Connection.from_uri(uri, "jojokey_test")) == f"{scheme}://gw.example.com:8080/prefix"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"host": "gw.example.com", "schema": "prefix/v1"}, "https://gw.example.com/prefix"),
        ({"host": "gw.example.com", "schema": "/prefix/v1/"}, "https://gw.example.com/prefix"),
        ({"host": "https://gw.example.com", "schema": "prefix"}, "https://gw.example.com/prefix"),
        ({"host": "https://gw.example.com/a/", "schema": "b/v1"}, "https://gw.example.com/a/b"),
        ({"host": "http://gw.example.com/a", "schema": "https"}, "http://gw.example.com/a"),
        ({"host": "gw.example.com/a", "schema": "HTTP", "port": 81}, "http://gw.example.com:81/a"),
        ({"host": "gw.example.com", "schema": "http://"}, "http://gw.example.com"),
        ({"host": "gw.example.com", "schema": "prefix", "port": 8443}, "https://gw.example.com:8443/prefix"),
        ({"host": "::1/prefix", "port": 8443}, "https://[::1]:8443/prefix"),
        ({"host": "https://bücher.example/a"}, "https://bücher.example/a"),
        ({"schema": "prefix/v1"}, "https://api.jojokey.com/prefix"),
        ({"schema": "https"}, "https://api.jojokey.com"),
        ({"host": " ", "schema": " ", "port": 0}, "https://api.jojokey.com"),
    ],
)
def test_schema_of_other_connections_is_kept(fields: dict[str, Any], expected: str) -> None:
    assert base_url(from_json(**fields)) == expected
    assert base_url(Connection(conn_id="form", conn_type="jojokey", password=TOKEN, **fields)) == expected


@given(st.lists(st.text(min_size=1, max_size=8).filter(lambda part: part not in "..")), st.booleans())
def test_any_path_survives_a_uri(parts: list[str], encoded: bool) -> None:
    path = "/".join(quote(part, safe="") for part in [*parts, "prefix"])
    place = quote(f"/{path}", safe="") if encoded else f"/{path}"
    connection = Connection.from_uri(f"jojokey://:{TOKEN}@gw.example.com{place}", "jojokey_test")
    try:
        found = base_url(connection)
    except ValueError:  # a question mark or a hash sign, which would be a query or a fragment
        assert "%3F" in path or "%23" in path
        return
    assert found.endswith("prefix")
    assert found.count("/") >= 3


@pytest.mark.parametrize("schema", ["prefix?key=1", "prefix#part"])
def test_query_and_fragment_in_a_path_are_rejected(schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "jojokey", "password": TOKEN, "host": "gw.example.com", "schema": schema}
    monkeypatch.setenv("AIRFLOW_CONN_JOJOKEY_TEST", json.dumps(connection))
    with pytest.raises(JojoKeyConnectionError, match="base URL"):
        JojoKeyHook("jojokey_test").client  # noqa: B018


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"host": 5}, "host"), ({"schema": ["v1"]}, "schema"), ({"password": 123456}, "password")],
)
def test_field_of_the_wrong_type_is_named(fields: dict[str, Any], name: str) -> None:
    connection = Connection(**{"conn_id": "c", "conn_type": "jojokey", "password": TOKEN, **fields})
    with pytest.raises(JojoKeyConnectionError, match=f"The {name} of") as caught:
        ConnectionSettings.of(connection)
    assert "123456" not in str(caught.value)
    assert caught.value.billed == "no"


@pytest.mark.parametrize("blank", ["", " ", None])
def test_blank_values_of_the_extra_are_unset(blank: str | None) -> None:
    names = ("default_model", "read_timeout", "max_resends", "verify", "proxy", "unknown")
    settings = ConnectionSettings.of(from_json(extra=dict.fromkeys(names, blank)))
    assert settings == ConnectionSettings(token=TOKEN, host=None)


@pytest.mark.parametrize("model", ["gpt\n-image", "gpt\x00", "\ud800"])
def test_unprintable_default_model_is_rejected(model: str) -> None:
    with pytest.raises(JojoKeyConnectionError, match="default_model"):
        ConnectionSettings.of(from_json(extra={"default_model": model}))


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("read_timeot", "read_timeout"),
        ("readTimeout", "read_timeout"),
        ("Read-Timeout", "read_timeout"),
        ("timeout_read", None),
        ("max_resend", "max_resends"),
        ("proxies", "proxy"),
        ("verify_ssl", "verify"),
        ("colour", None),
    ],
)
def test_unknown_key_of_the_extra_is_logged_with_the_nearest(
    written: str, nearest: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    connection = from_json(extra={written: "s3cret-value"})
    connection.conn_id = f"jojokey_{written}"
    with caplog.at_level(logging.WARNING, "airflow_provider_jojokey"):
        for _ in range(3):  # a process logs it once
            settings = ConnectionSettings.of(connection)
    (record,) = caplog.records
    (warning,) = settings.warnings
    assert repr(written) in record.getMessage()
    assert connection.conn_id in record.getMessage()
    assert warning in record.getMessage()
    assert "s3cret" not in record.getMessage()
    if nearest:
        assert f"Did you mean {nearest!r}?" in warning


def test_known_keys_of_the_extra_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    settings = ConnectionSettings.of(
        from_json(extra={"read_timeout": 400, "max_resends": "1", "verify": "true"})
    )
    assert settings.warnings == ()
    assert caplog.records == []
