"""The provider's settings: section ``[jojokey]`` of Airflow's configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from airflow_provider_jojokey.cost import PUBLISHED, Prices, parse_prices
from airflow_provider_jojokey.store.extra_args import parse_extra_args
from airflow_provider_jojokey.store.spool import MAX_AGE
from airflow_provider_jojokey.store.spool_directory import default_root

UPLOAD_PATIENCE = 600.0
LONGEST_GENERATION = 300.0
THUMBNAIL_CACHE_BYTES = 512 * 1024 * 1024
MAX_SECONDS = 1_000_000_000
MAX_BYTES = 1_000_000_000_000_000


def _thumbnail_directory() -> Path:
    root = default_root()
    return root.with_name(f"{root.name}-thumbnails")


class Settings(Struct, frozen=True):
    """The settings for all tasks of a worker.

    :param spool_directory: where received images stay until S3 confirms them
    :param spool_max_age: seconds after which unclaimed images are deleted
    :param upload_patience: seconds to wait for S3 during an outage, after images were paid
    :param longest_generation: seconds after which a generation of 1024x1024 in high quality has definitely ended;
        larger images take proportionally longer
    :param thumbnail_directory: where the API server keeps small copies of the images
    :param thumbnail_cache_bytes: maximum total size of these copies
    :param s3_extra_args: additional S3 parameters for every object, see :mod:`store.extra_args`
    """

    spool_directory: Path = field(default_factory=default_root)
    spool_max_age: float = MAX_AGE
    upload_patience: float = UPLOAD_PATIENCE
    longest_generation: float = LONGEST_GENERATION
    thumbnail_directory: Path = field(default_factory=_thumbnail_directory)
    thumbnail_cache_bytes: int = THUMBNAIL_CACHE_BYTES
    s3_extra_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_airflow_config(cls) -> Settings:
        """Read Airflow's configuration.

        :raises JojoKeyRequestError: if a setting can't be used
        """
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError

        try:
            return cls._read()
        except ValueError as error:
            raise JojoKeyRequestError(f"{error}.") from None

    @classmethod
    def _read(cls) -> Settings:
        return cls(
            spool_directory=_directory("spool_directory") or default_root(),
            spool_max_age=_number("spool_max_age", MAX_AGE),
            upload_patience=_number("upload_patience", UPLOAD_PATIENCE),
            longest_generation=_number("longest_generation", LONGEST_GENERATION),
            thumbnail_directory=_directory("thumbnail_directory") or _thumbnail_directory(),
            s3_extra_args=configured_s3_extra_args(),
            thumbnail_cache_bytes=int(
                _number("thumbnail_cache_bytes", THUMBNAIL_CACHE_BYTES, limit=MAX_BYTES)
            ),
        )


def _written(name: str) -> str:
    """Return a setting as text; empty if it is not set.

    :raises ValueError: if Airflow can't read it. The value is left out, because it may be secret
    """
    import configparser

    from airflow.providers.common.compat.sdk import conf

    try:
        return str(conf.get("jojokey", name, fallback="") or "").strip()
    except configparser.InterpolationError:
        raise ValueError(f"[jojokey] {name} contains a %: write it as %% in airflow.cfg") from None


def _directory(name: str) -> Path | None:
    """Return a directory of the settings; ``None`` if it is not set.

    A relative path would lead a retry, which may run in another current directory, to another spool.

    :raises ValueError: if it is not an absolute path
    """
    written = _written(name)
    try:
        path = Path(written).expanduser()
    except RuntimeError as error:  # "~" of a user without a home directory
        raise ValueError(f"[jojokey] {name} is not usable: {written[:80]!r}: {error}".rstrip(".")) from None
    if written and not path.is_absolute():
        raise ValueError(f"[jojokey] {name} must be an absolute path, not {written[:80]!r}")
    return path if written else None


def _number(name: str, default: float, limit: int = MAX_SECONDS) -> float:
    """Return a number of the settings.

    :param limit: the largest possible value, which means no limit
    :raises ValueError: if it is not a number from 0 to ``limit``
    """
    written = _written(name)
    try:
        number = float(written or default)
    except ValueError:
        number = math.nan
    if not 0 <= number <= limit:
        raise ValueError(
            f"[jojokey] {name} must be a number from 0 to {limit}, not {written[:40]!r}; for no limit, write {limit}"
        )
    return number


def configured_prices() -> Prices:
    """Return the prices of ``[jojokey] price_per_million``; by default the published ones.

    :raises ValueError: if they can't be understood
    """
    return parse_prices(_written("price_per_million"), "[jojokey] price_per_million") or PUBLISHED


def configured_s3_extra_args() -> dict[str, Any]:
    """Return the S3 parameters of ``[jojokey] s3_extra_args``; by default none.

    :raises ValueError: if they can't be used
    """
    return parse_extra_args(_written("s3_extra_args"), "[jojokey] s3_extra_args")
