"""Give each test process a separate Airflow home, and hide the machine's settings from it."""

from __future__ import annotations

import atexit
import io
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

# Set this before any import of Airflow, which reads its home only once.
_HOME = tempfile.mkdtemp(prefix="jojokey-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
for _name in list(os.environ):
    if _name.startswith(("AIRFLOW", "JOJOKEY_", "AWS_ACCESS", "AWS_SECRET", "AWS_SESSION", "AWS_PROFILE")):
        del os.environ[_name]
os.environ.update(
    AIRFLOW_HOME=_HOME,
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__CORE__DAGS_FOLDER=os.path.join(_HOME, "dags"),
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=os.environ.get("TESTS_DATABASE") or f"sqlite:///{_HOME}/airflow.db",
    AIRFLOW__JOJOKEY__SPOOL_DIRECTORY=os.path.join(_HOME, "spool"),
    AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
    AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT="60",
    NO_PROXY="127.0.0.1,localhost",
)
# Tests start some 200 processes with Airflow. Without cached byte code, each would compile 2,000 modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import pytest  # noqa: E402

pytest.register_assert_rewrite("tests.support")

from botocore.loaders import Loader  # noqa: E402
from hypothesis import settings  # noqa: E402
from PIL import Image  # noqa: E402

from airflow_provider_jojokey.sandbox import Gateway  # noqa: E402
from tests.support.airflow import _choose, _stores, airflow, any_store, plain_store, s3, store  # noqa: E402
from tests.support.loopback import Authority  # noqa: E402

__all__ = ["_choose", "_stores", "airflow", "any_store", "plain_store", "s3", "store"]

# moto's server runs in this process, and Airflow sends its log to standard output, where commands print their JSON.
logging.getLogger("werkzeug").setLevel(logging.ERROR)

settings.register_profile("tests", deadline=None, database=None)
settings.load_profile("tests")

TOKENS = {
    f"sk-{state}": state for state in ("disabled", "expired", "exhausted", "no_model", "no_group", "ip")
}

_OF_THIS_COMPUTER = [
    name
    for scheme in ("http", "https", "all", "no")
    for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper())
] + ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"]


SLOW = (
    "tests/test_demo.py",
    "tests/browser/",
    "tests/operators/test_observability.py",
    "tests/plugins/",
    "tests/batch/",
)
"""These run first: two processes share the files, and a long one at the end would keep one process idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(
        key=lambda item: next((rank for rank, slow in enumerate(SLOW) if item.nodeid.startswith(slow)), 99)
    )


@pytest.fixture(scope="session", autouse=True)
def _one_cache_of_service_models() -> Iterator[None]:
    """Let all sessions of boto3 share the models that they have read.

    Each hook creates a session, as in a task's own process. That reads the same JSON files again, for 0.2 seconds.
    """
    cache: dict[object, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loader, "_cache", property(lambda self: cache, lambda self, new: None), raising=False)
        yield


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _OF_THIS_COMPUTER:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def png() -> bytes:
    """A small image whose base64 has every character."""
    out = io.BytesIO()
    Image.effect_noise((96, 64), 90).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def _one_gateway(png: bytes) -> Iterator[Gateway]:
    with Gateway(image=png, tokens=TOKENS, log_limit=None) as running:
        yield running


@pytest.fixture
def gateway(_one_gateway: Gateway) -> Gateway:
    """The sandbox gateway in its initial state."""
    _one_gateway.reset()
    return _one_gateway


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority that no system trusts."""
    return Authority.make(tmp_path_factory.mktemp("ca"))
