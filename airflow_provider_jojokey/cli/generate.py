"""``airflow jojokey generate``: generate images, and store them in S3 or on disk."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import stat
import sys
import tempfile
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.cli.connections import image_store, jojokey_hook
from airflow_provider_jojokey.cli.console import (
    BILLED,
    FAILED,
    CommandFailed,
    OutputFailed,
    code_of,
    command,
    cost_fields,
    progress,
    say,
    show,
)
from airflow_provider_jojokey.cost import Costs, sum_of
from airflow_provider_jojokey.exceptions import JojoKeyError, JojoKeyRequestError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.img2.client import Generation
    from airflow_provider_jojokey.img2.images import ImageFile
    from airflow_provider_jojokey.img2.request import ImageRequest
    from airflow_provider_jojokey.store.keys import Destination

DAG_ID, TASK_ID = "jojokey-cli", "generate"
"""Dag and task ID in the receipts of this command."""
EXTENSIONS = ("png", "jpg", "webp")
TABLE_COLUMNS = ("image", "content_type", "width", "height", "bytes", "total_tokens", "cost", "reused")


@command
def generate(options: argparse.Namespace) -> None:
    """Generate images into S3 or into files."""
    hook = jojokey_hook(options.jojokey_conn_id)
    request = _request(options, hook)
    store = _to_s3 if options.out.startswith("s3://") else _to_disk
    rows = store(options, hook, request)
    try:
        show(rows, options.output, TABLE_COLUMNS)
    except OutputFailed as error:
        paid = "The images were" if len(rows) > 1 else "The image was"
        listed = ", ".join(row["image"] for row in rows)
        code = FAILED if all(row["reused"] for row in rows) else BILLED
        raise CommandFailed(f"{error} {paid} paid for and stored: {listed}", code) from None


def _request(options: argparse.Namespace, hook: JojoKeyHook) -> ImageRequest:
    from airflow_provider_jojokey.img2.request import ImageRequest

    try:
        prompt = _standard_input() if options.prompt == "-" else options.prompt
        return ImageRequest(
            prompt.strip(),
            model=options.model or hook.settings.default_model,
            size=options.size,
            quality=options.quality,
            n=options.number,
            background=options.background,
            output_format=options.image_format,
            output_compression=options.compression,
            moderation=options.moderation,
            stream=options.stream,
        )
    except ValueError as error:
        raise JojoKeyRequestError(f"The request is invalid: {error}.") from None


def _standard_input() -> str:
    """Return the prompt from standard input.

    :raises ValueError: if there is none
    """
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not valid {error.encoding}") from None


@contextmanager
def _waiting(hook: JojoKeyHook, request: ImageRequest) -> Iterator[None]:
    """Show progress; Ctrl-C closes the connection."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

    from airflow_provider_jojokey.img2.estimate import expected_seconds, expected_usage

    seconds = expected_seconds(request)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(pulse_style="cyan"))
    try:
        with progress(*columns, TimeElapsedColumn()) as bar:
            images = f"{request.n} images" if request.n > 1 else "an image"
            cost = hook.prices.cost_of(expected_usage(request))
            bar.add_task(f"Generating {images}: about {seconds:.0f} s, {cost}", total=None)
            yield
    except KeyboardInterrupt:
        hook.abort()
        raise CommandFailed("Interrupted. If the request was sent, you are charged anyway.", BILLED) from None


# To S3, like the operator


def _to_s3(options: argparse.Namespace, hook: JojoKeyHook, request: ImageRequest) -> list[dict[str, Any]]:
    from airflow_provider_jojokey.payments.attempt import Owner
    from airflow_provider_jojokey.payments.generate import ImageJob, Services, generate_images
    from airflow_provider_jojokey.settings import Settings
    from airflow_provider_jojokey.store.default_bucket import default_bucket
    from airflow_provider_jojokey.store.keys import Destination

    try:
        destination = Destination.parse(
            None, options.out, request.n, lambda: default_bucket(options.aws_conn_id)
        )
    except ValueError as error:
        raise JojoKeyRequestError(f"The location in S3 is invalid: {error}.") from None
    store = image_store(options, stores_images=True)
    if not options.overwrite:
        _reject_existing_objects(options, hook, request, store, destination)
    job = ImageJob(
        request=request,
        destination=destination,
        owner=Owner(DAG_ID, _run_id(), TASK_ID),
        reuse=options.reuse,
        on_unknown_outcome=options.on_unknown_outcome,
        replace=options.overwrite,
    )
    with _waiting(hook, request):
        services = Services(hook, store, Settings.from_airflow_config())
        manifest = generate_images(job, services).manifest
    if manifest["reused"]:
        say("jojokey: Nothing was sent: these images were paid for earlier.")
    # Paid images have tokens. Their sum is 0 if they are unknown.
    tokens = 0 if manifest["reused"] else manifest["usage"].get("total_tokens") or None
    cost = Costs() if manifest["reused"] else Costs.from_json(manifest["cost"])
    return [
        _row(
            image["uri"],
            image,
            tokens if number == 0 else 0,
            cost if number == 0 else Costs(),
            manifest["request_id"],
            manifest["reused"],
        )
        for number, image in enumerate(manifest["images"])
    ]


def _reject_existing_objects(
    options: argparse.Namespace,
    hook: JojoKeyHook,
    request: ImageRequest,
    store: Any,
    destination: Destination,
) -> None:
    """Raise an error if objects exist at these keys, except for images that the same request paid for."""
    from airflow_provider_jojokey.payments.attempt import Outcome
    from airflow_provider_jojokey.payments.receipt_store import ReceiptStore

    fingerprint = request.fingerprint(hook.client.base_url)
    own: set[str] = set()
    if options.reuse == "always":
        receipt = ReceiptStore(store, destination).read()
        last = next(
            (attempt for attempt in reversed(receipt.attempts) if attempt.outcome is Outcome.COMPLETE), None
        )
        if last is not None and last.fingerprint == fingerprint:
            own = {image.key for image in last.images}
    keys = {destination.key_for(index, extension) for index in range(request.n) for extension in EXTENSIONS}
    for key in sorted(keys - own):
        if store.size_of(destination.bucket, key) is not None:
            raise JojoKeyRequestError(
                f"{destination.uri(key)} already exists.", "Choose another key, or use --overwrite."
            )


def _run_id() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user ID without a name
        user = str(os.getuid())
    return f"manual__{datetime.now(UTC).isoformat()}__{user}__{uuid.uuid4().hex[:8]}"


# To disk, without a receipt


def _to_disk(options: argparse.Namespace, hook: JojoKeyHook, request: ImageRequest) -> list[dict[str, Any]]:
    from airflow_provider_jojokey.store.keys import Destination, extension_warning

    folder, name = _folder_and_name(options.out, request, options.overwrite)
    try:
        destination = Destination("disk", name, request.n)
    except ValueError:
        raise JojoKeyRequestError(f"{options.out!r} is not a file name.") from None
    for index in range(request.n):
        for extension in EXTENSIONS:
            _check_target(folder / destination.key_for(index, extension), options.overwrite)
    try:
        # On the target's disk, so that images can be linked. This also checks that the folder is writable.
        spool = Path(tempfile.mkdtemp(prefix=".jojokey-", dir=folder))
    except OSError as error:
        raise JojoKeyRequestError(f"{folder} can't be written: {error.strerror}.") from None
    try:
        generation = _generate(hook, request, spool)
        with _closing(generation):
            rows: list[dict[str, Any]] = []
            for image in generation.images:
                target = folder / destination.key_for(image.index, image.extension)
                if warning := extension_warning(target.name, image.extension):
                    say(f"jojokey: {warning}")
                assert image.file.path is not None
                path = _place(image.file.path, target, options.overwrite)
                facts = {
                    "content_type": image.content_type,
                    "width": image.width,
                    "height": image.height,
                    "bytes": image.file.size,
                    "sha256": image.file.sha256,
                }
                usage = (generation.usage or {}).get("total_tokens") if not rows else 0
                cost = Costs() if rows else sum_of([hook.prices.cost_of(generation.usage)])
                rows.append(_row(str(path), facts, usage, cost, generation.request_id, reused=False))
        return rows
    finally:
        if not [*spool.glob("*.image"), *spool.glob("*.bin")]:
            shutil.rmtree(spool, ignore_errors=True)


def _generate(hook: JojoKeyHook, request: ImageRequest, spool: Path) -> Generation:
    """Send the paid request. Images of a response that breaks off stay in ``spool``."""
    from airflow_provider_jojokey.img2.images import ImageFile

    def open_file(index: int) -> ImageFile:
        return ImageFile(spool / f"{index}.part")

    with _waiting(hook, request):
        try:
            return hook.generate(request, open_file)
        except JojoKeyError as error:
            kept = [str(path) for path in sorted(spool.glob("*.image"))]
            todo = error.todo
            if error.billed != "no":
                todo = f"{todo} Images on disk have no receipt: the same command pays again.".strip()
            raise CommandFailed(error.changed(kept=kept, todo=todo).message, code_of(error)) from None


@contextmanager
def _closing(generation: Generation) -> Iterator[None]:
    """Close the files of the images when the context ends."""
    try:
        yield
    finally:
        generation.close()


def _check_target(path: Path, overwrite: bool) -> None:
    """Check before the payment that an image can get this name.

    :raises JojoKeyRequestError: if not
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:  # for example, the name is too long
        raise JojoKeyRequestError(f"{path} can't be written: {error.strerror}.") from None
    if stat.S_ISDIR(mode):
        raise JojoKeyRequestError(f"{path} is a folder.", "Choose another name.")
    if not overwrite:
        raise JojoKeyRequestError(f"{path} already exists.", "Choose another name, or use --overwrite.")


def _folder_and_name(out: str, request: ImageRequest, overwrite: bool) -> tuple[Path, str]:
    """Return an existing folder and a file name. If ``out`` is a folder, choose a name that no file there has."""
    try:
        path = Path(out).expanduser()
        is_folder = path.is_dir()
        in_folder = is_folder or path.parent.is_dir()
    except RuntimeError:  # ~name without such a user
        raise JojoKeyRequestError(f"The folder {out.partition('/')[0]} doesn't exist.") from None
    except OSError as error:
        raise JojoKeyRequestError(f"{out} can't be written: {error.strerror}.") from None
    if not (is_folder or out.endswith(("/", os.sep))):
        if not in_folder:
            raise JojoKeyRequestError(f"The folder {path.parent} doesn't exist.")
        return path.parent, path.name
    if not is_folder:
        raise JojoKeyRequestError(f"The folder {path} doesn't exist.")
    slug = re.sub(r"[^\w]+", "-", request.prompt.lower())[:40].strip("-_") or "image"
    try:
        taken = [entry.name.rpartition(".")[0] for entry in path.iterdir()]
    except OSError as error:
        raise JojoKeyRequestError(f"{path} can't be read: {error.strerror}.") from None
    name, number = slug, 1
    while (
        any(stem == name or re.fullmatch(re.escape(name) + r"-\d", stem) for stem in taken) and not overwrite
    ):
        number += 1
        name = f"{slug}_{number}"
    return path, f"{name}.{{ext}}"


def _place(received: Path, target: Path, overwrite: bool) -> Path:
    """Move an image to its target. If another file has appeared there, use the next free name.

    :raises CommandFailed: if the image has to stay where it is
    """
    try:
        return _moved(received, target, overwrite)
    except OSError as error:
        raise CommandFailed(
            f"The image was paid for. It stays in {received}, because {target} can't be written: {error.strerror}.",
            BILLED,
        ) from None


def _moved(received: Path, target: Path, overwrite: bool) -> Path:
    if overwrite:
        return received.replace(target)
    for number in range(1, 1000):
        path = target if number == 1 else target.with_stem(f"{target.stem}_{number}")
        try:
            os.link(received, path)  # unlike renaming, it never replaces an existing file
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            if os.path.lexists(path):
                continue
            return received.rename(path)
        received.unlink()
        return path
    raise CommandFailed(
        f"The image was paid for. It stays in {received}, because {target} and 998 similar names are in use.",
        BILLED,
    )


def _row(
    location: str,
    image: dict[str, Any],
    tokens: int | None,
    cost: Costs,
    request_id: str | None,
    reused: bool,
) -> dict[str, Any]:
    return {
        "image": location,
        "content_type": image["content_type"],
        "width": image["width"],
        "height": image["height"],
        "bytes": image["bytes"],
        "sha256": image["sha256"],
        "total_tokens": tokens,
        **cost_fields(cost),
        "reused": reused,
        "request_id": request_id,
    }
