"""Buckets on real servers, and a small shop in front of them that makes images as Airflow's tasks would."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_jojokey.exceptions import JojoKeyError, JojoKeyUnknownOutcomeError
from airflow_provider_jojokey.generation import generate_images
from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
from airflow_provider_jojokey.img2 import ImageRequest
from airflow_provider_jojokey.order import Order
from airflow_provider_jojokey.sandbox import Gateway
from airflow_provider_jojokey.settings import Settings
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.store.receipts import Owner, Receipt
from airflow_provider_jojokey.store.s3 import ImageStore

from .buckets import BUCKET, IMPATIENT, Bucket, bucket_of, moto_bucket

__all__ = ["BUCKET", "IMPATIENT", "Bucket", "Shop", "bucket_of", "moto_bucket"]
_stores: dict[str, Any] = {}


@dataclass
class Shop:
    """Where images are ordered, as a task of Airflow does it: one call is one try.

    :param connection: the extra of the connection to JojoKey
    """

    gateway: Gateway
    bucket: Bucket
    spools: Path
    environ: Any
    connection: dict[str, Any] = field(default_factory=dict)
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.settings = Settings(spool_directory=self.spools, upload_patience=20.0, longest_generation=0.3)
        self.connect()

    def connect(self, token: str | None = None, host: str | None = None, **extra: Any) -> None:
        """Write the two Airflow connections."""
        patient = {"connect_timeout": 2, "read_timeout": 5, "max_resends": 0, "max_resend_wait": 1}
        jojokey = {
            "conn_type": "jojokey",
            "host": host or self.gateway.url,
            "password": self.gateway.token if token is None else token,
            "extra": {**patient, **self.connection, **extra},
        }
        self.environ.setenv("AIRFLOW_CONN_JOJOKEY_DEFAULT", json.dumps(jojokey))
        self.environ.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(self.bucket.connection))

    def set(self, **settings: Any) -> None:
        self.settings = replace(self.settings, **settings)

    def store(self) -> ImageStore:
        store = ImageStore("aws_default")
        made = _stores.get(self.bucket.endpoint_url)
        if made is None:
            made = _stores[self.bucket.endpoint_url] = store.client  # from the Airflow connection; it is slow
        vars(store)["client"] = made
        return store

    def order(
        self,
        prompt: str = "a fox",
        key: str = "fox.png",
        *,
        run: str = "monday",
        task: str = "image",
        map_index: int = -1,
        try_number: int = 1,
        reuse: str = "run",
        on_unknown_outcome: str = "fail",
        bucket: str | None = None,
        **request: Any,
    ) -> Order:
        return Order(
            ImageRequest(prompt, **request),
            Destination(bucket or self.bucket.name, key, request.get("n", 1)),
            Owner("dag", run, task, map_index, try_number),
            reuse,
            on_unknown_outcome,
        )

    def make(self, *order: Any, hook: JojoKeyHook | None = None, **more: Any) -> dict[str, Any]:
        """Make one try."""
        return generate_images(
            self.order(*order, **more),
            jojokey=hook or JojoKeyHook(),
            store=self.store(),
            settings=self.settings,
        )

    def refused(self, *order: Any, **more: Any) -> JojoKeyError:
        """Make one try that fails, and return its error."""
        try:
            manifest = self.make(*order, **more)
        except JojoKeyError as error:
            return error
        raise AssertionError(f"it was made: {manifest}")

    def attempts(
        self, *order: Any, retries: int = 3, first: int = 1, **more: Any
    ) -> list[JojoKeyError | dict[str, Any]]:
        """Try as Airflow does: again, with the next try number, unless that was forbidden."""
        results: list[JojoKeyError | dict[str, Any]] = []
        for try_number in range(first, first + retries + 1):
            try:
                return [*results, self.make(*order, try_number=try_number, **more)]
            except JojoKeyError as error:
                results.append(error)
                if isinstance(error, AirflowFailException):
                    break
                if isinstance(error, JojoKeyUnknownOutcomeError) and error.retry_after:
                    threading.Event().wait(error.retry_after)  # only time makes a log final
        return results

    def receipt(self, key: str = "fox.png") -> Receipt:
        answer = self.bucket.client().get_object(Bucket=self.bucket.name, Key=f"_jojokey/{key}.json")
        return Receipt.from_json(answer["Body"].read())

    def outcomes(self, key: str = "fox.png") -> list[str]:
        return [str(one.outcome) for one in self.receipt(key).attempts]

    def read(self, key: str) -> bytes:
        return bytes(self.bucket.client().get_object(Bucket=self.bucket.name, Key=key)["Body"].read())

    def keys(self) -> list[str]:
        listing = self.bucket.client().list_objects_v2(Bucket=self.bucket.name)
        return [one["Key"] for one in listing.get("Contents", [])]

    def spooled(self) -> list[str]:
        """The names of all files that wait in spools."""
        return sorted(path.name for path in self.spools.rglob("*") if path.is_file() and path.name != "id")

    @property
    def posts(self) -> int:
        return len(self.gateway.requests)

    @property
    def billed(self) -> int:
        """How many requests were billed."""
        return len(self.gateway.ledger)

    @property
    def tokens(self) -> int:
        """How many tokens were billed."""
        return sum(record.total_tokens for record in self.gateway.ledger)
