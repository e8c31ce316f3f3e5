"""The spool: what another process finds on disk after a crash at any moment, and what that proves."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from airflow_provider_jojokey.img2.client import Generation
from airflow_provider_jojokey.img2.images import Image, ImageFile
from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.settings import Settings
from airflow_provider_jojokey.store import host, spool_directory
from airflow_provider_jojokey.store import spool as spools
from airflow_provider_jojokey.store.spool import Spool
from tests.support.patience import PATIENCE

PLACE = "s3://posters/fox.png"
ATTEMPT = {"id": "a" * 32, "owner": {"dag_id": "posters"}, "prompt": "狐狸"}


def image_data(width: int) -> bytes:
    out = io.BytesIO()
    Picture.new("RGB", (width, 16), "orange").save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool.of(tmp_path, PLACE, ATTEMPT["id"])
    spool.create(ATTEMPT)
    return spool


def arrive(spool: Spool, index: int, width: int | None = None, seal: str | None = ".image") -> ImageFile:
    file = spool.open(index)
    file.write(image_data(width) if width else b"no image at all")
    if seal:
        file.seal(seal)
    return file


def generation(*files: ImageFile, **facts: Any) -> Generation:
    images = []
    for index, file in enumerate(files):
        header = file.header()
        images.append(Image(index, file, header.content_type, header.width, header.height, "revised"))
    known: dict[str, Any] = {
        "usage": {"total_tokens": 3},
        "created": 7,
        "model": "gpt-image-2",
        "size": "1024x1024",
        "quality": "low",
        "request_id": "req-海",
        "seconds": 1.5,
    }
    return Generation(images=images, **{**known, **facts})


def widths(images: list[Image]) -> list[int]:
    found = [image.width for image in images]
    for image in images:
        image.file.close()
    return found


def open_files() -> list[str]:
    return [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


def in_another_process(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return done.stdout


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


# --- the folder ----------------------------------------------------------------------------------------------------


def test_each_attempt_at_each_key_has_its_own_folder(tmp_path: Path) -> None:
    folders = {
        Spool.of(tmp_path, place, attempt).folder
        for place in (PLACE, "s3://posters/../../etc/passwd", "s3://posters/狐狸.png")
        for attempt in ("a" * 32, "b" * 32)
    }
    assert len(folders) == 6
    assert all(folder.parent.parent == tmp_path for folder in folders)
    assert Spool.of(tmp_path, PLACE, "a" * 32) == Spool.of(tmp_path, PLACE, "a" * 32)


def test_spool_exists_from_create_to_discard(tmp_path: Path) -> None:
    first, second = (Spool.of(tmp_path, PLACE, letter * 32) for letter in "ab")
    assert not first.exists
    first.create(ATTEMPT)
    second.create(ATTEMPT)
    assert first.exists
    first.discard()
    assert (first.exists, second.exists) == (False, True)
    second.discard()
    second.discard()
    assert list(tmp_path.iterdir()) == []


def test_create_succeeds_while_another_spool_is_discarded(tmp_path: Path) -> None:
    def come_and_go(letter: str) -> None:
        spool = Spool.of(tmp_path, PLACE, letter * 32)
        for _ in range(60):
            spool.create(ATTEMPT)
            assert spool.proves_unsent()
            spool.discard()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, "abcd"))


def test_only_this_user_can_read_the_spool(tmp_path: Path) -> None:
    root = tmp_path / "new" / "spools"
    spool_directory.prepare(root)
    spool = Spool.of(root, PLACE, "a" * 32)
    spool.create(ATTEMPT)
    spool.mark_sending("2026-07-30T12:00:00+00:00", "s3")
    spool.add_fact("link", "https://example.com/?secret")
    assert (mode(root), mode(spool.folder)) == ("0o700", "0o700")
    assert {mode(path) for path in spool.folder.iterdir()} == {"0o600"}


def test_default_root_belongs_to_this_user() -> None:
    assert str(os.getuid()) in spool_directory.default_root().name


def test_configured_spool_needs_no_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_is_writable() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", none_is_writable)
    monkeypatch.setenv("AIRFLOW__JOJOKEY__SPOOL_DIRECTORY", str(tmp_path))
    assert Settings.from_airflow_config().spool_directory == tmp_path
    assert spool_directory.default_root().name == f"airflow-jojokey-{os.getuid()}"


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"file"):
        spool_directory.prepare(tmp_path / "file" / "spools")
    with pytest.raises(OSError, match=r"file"):
        Spool.of(tmp_path / "file", PLACE, "a" * 32).create(ATTEMPT)


def test_lack_of_space_is_described(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ImageRequest("a fox", n=2, size="1024x1024")
    assert spool.check_free_space(request) is None
    needed = 2 * 1024 * 1024 * 4 + spools.SPARE_BYTES
    for free, enough in ((needed, True), (needed - 1, False)):
        usage = shutil.disk_usage(spool.folder)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        found = spool.check_free_space(request)
        assert (found is None) is enough
    assert found == f"{needed - 1:,} bytes are free, but {needed:,} may be needed"


# --- shared directories --------------------------------------------------------------------------------------------

root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")


def owned_by_another(folder: Path, permissions: int) -> Path:
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    folder.chmod(permissions)
    return folder


@root_only
@pytest.mark.parametrize("permissions", [0o1777, 0o2775, 0o777])
def test_shared_directory_gets_a_private_subfolder(tmp_path: Path, permissions: int) -> None:
    shared = owned_by_another(tmp_path / "shared", permissions)
    known = spool_directory.prepare(shared)
    assert spool_directory.prepare(shared) == known
    spool = Spool.of(shared, PLACE, "a" * 32)
    spool.create(ATTEMPT)
    (private,) = shared.iterdir()
    assert private.name == f"uid-{os.getuid()}"
    assert mode(private) == "0o700"
    assert spool.folder.is_relative_to(private)
    assert spool.proves_unsent()
    assert spools.attempts_in(shared, PLACE) == [(spool, ATTEMPT)]
    age(spool.folder, 1000)
    spools.clean(shared, max_age=100)
    assert not spool.exists
    assert mode(shared) == oct(permissions & 0o777)


_PREPARE_AS_ANOTHER = """
import os, sys
from pathlib import Path
from airflow_provider_jojokey.store import spool_directory
from airflow_provider_jojokey.store import host
host.machine_id()  # loads modules that the other user may not be allowed to read
os.setgid(54321), os.setuid(54321)
print(spool_directory.prepare(Path(sys.argv[1])))
"""


@root_only
def test_users_share_a_sticky_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        Path(folder).chmod(0o755)
        shared = owned_by_another(Path(folder) / "shared", 0o1777)
        ids = {spool_directory.prepare(shared), in_another_process(_PREPARE_AS_ANOTHER, shared).strip()}
        assert len(ids) == 2
        assert {path.name for path in shared.iterdir()} == {"uid-0", "uid-54321"}


@root_only
def test_subfolder_of_another_user_is_rejected(tmp_path: Path) -> None:
    shared = owned_by_another(tmp_path / "shared", 0o1777)
    owned_by_another(shared / f"uid-{os.getuid()}", 0o777)
    with pytest.raises(PermissionError, match="another user"):
        spool_directory.prepare(shared)


def test_directory_that_this_user_may_not_write_to_is_an_error() -> None:
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    with pytest.raises(PermissionError):
        spool_directory.prepare(Path("/"))


@root_only
@pytest.mark.parametrize("target_is_shared", [False, True])
def test_link_of_another_user_is_rejected(tmp_path: Path, target_is_shared: bool) -> None:
    if target_is_shared:
        owned_by_another(tmp_path / "target", 0o1777)
    else:
        (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.lchown(tmp_path / "link", 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        spool_directory.prepare(tmp_path / "link")
    spools.clean(tmp_path / "link")
    assert list((tmp_path / "target").iterdir()) == []


@root_only
def test_link_of_root_is_followed() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        own = Path(folder) / "own"
        own.mkdir(mode=0o700)
        os.chown(own, 54321, 54321)
        (Path(folder) / "link").symlink_to(own)
        known = in_another_process(_PREPARE_AS_ANOTHER, Path(folder) / "link").strip()
        assert uuid.UUID(hex=known)
        assert [path.name for path in own.iterdir()] == ["id"]


def test_own_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert spool_directory.prepare(tmp_path / "link") == spool_directory.prepare(tmp_path / "mine")


# --- the ID --------------------------------------------------------------------------------------------------------


def test_id_is_stable_and_differs_between_directories(tmp_path: Path) -> None:
    known = spool_directory.prepare(tmp_path / "one")
    assert spool_directory.prepare(tmp_path / "one") == known
    assert spool_directory.prepare(tmp_path / "two") != known
    assert uuid.UUID(hex=known)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["id"]


def test_copied_directory_gets_its_own_id(tmp_path: Path) -> None:
    known = spool_directory.prepare(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    copied = spool_directory.prepare(tmp_path / "copy")
    assert copied != known
    assert spool_directory.prepare(tmp_path / "copy") == copied
    assert spool_directory.prepare(tmp_path / "one") == known


def test_renamed_directory_keeps_its_id(tmp_path: Path) -> None:
    known = spool_directory.prepare(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert spool_directory.prepare(tmp_path / "two") == known


def test_other_machine_gets_another_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = spool_directory.prepare(tmp_path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(host, "machine_id", lambda: "another")
        moved = spool_directory.prepare(tmp_path)
        assert moved != known
        assert spool_directory.prepare(tmp_path) == moved
    # On a shared disk, both machines keep theirs.
    assert spool_directory.prepare(tmp_path) == known


def test_concurrent_threads_agree_on_the_id(tmp_path: Path) -> None:
    for number in range(20):
        with ThreadPoolExecutor(8) as pool:
            ids = set(pool.map(spool_directory.prepare, [tmp_path / str(number)] * 8))
        assert len(ids) == 1


_PREPARE = """
import sys
from pathlib import Path
from airflow_provider_jojokey.store import spool_directory
print("ready", flush=True)
for line in sys.stdin:
    print(spool_directory.prepare(Path(line.strip())), flush=True)
"""


def test_concurrent_processes_agree_on_the_id(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _PREPARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for number in range(30):
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write(f"{tmp_path / str(number)}\n")
                worker.stdin.flush()
            assert len({worker.stdout.readline() for worker in workers if worker.stdout}) == 1
    finally:
        for worker in workers:
            worker.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("damage", [b"", b"\n", b"{", b'{"id": 7}', b"\xff\xfe", b'{"id": "x"', b"[1]\n7\n"])
def test_damaged_id_is_replaced(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "id").write_bytes(damage)
    known = spool_directory.prepare(tmp_path)
    assert uuid.UUID(hex=known)
    assert spool_directory.prepare(tmp_path) == known


def test_id_of_the_first_format_is_kept(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("c" * 32)
    assert spool_directory.prepare(tmp_path) == "c" * 32
    assert spool_directory.prepare(tmp_path) == "c" * 32


# --- marks ---------------------------------------------------------------------------------------------------------

NOON = "2026-07-30T12:00:00+00:00"


def test_new_spool_proves_that_nothing_was_sent(spool: Spool) -> None:
    assert spool.proves_unsent()
    assert spool.sends() == []
    assert spool.attempt() == ATTEMPT
    intent = json.loads((spool.folder / "intent.json").read_bytes())
    assert intent["attempt"] == ATTEMPT
    assert (intent["boot"], intent["machine"]) == (host.boot_id(), host.machine_id())


def test_mark_before_each_request_ends_the_proof(spool: Spool) -> None:
    spool.mark_sending(NOON, "s3")
    assert not spool.proves_unsent()
    assert spool.sends() == [{"at": NOON, "clock": "s3"}]
    spool.mark_sending("2026-07-30T12:00:05+00:00", "host")
    assert [(send["at"], send["clock"]) for send in spool.sends()] == [
        (NOON, "s3"),
        ("2026-07-30T12:00:05+00:00", "host"),
    ]
    assert spool.attempt() == ATTEMPT


def test_another_process_finds_the_marks(spool: Spool) -> None:
    code = """
import sys
from pathlib import Path
from airflow_provider_jojokey.store.spool import Spool
spool = Spool(Path(sys.argv[1]))
print(spool.proves_unsent(), len(spool.sends()), spool.attempt()["id"])
"""
    assert in_another_process(code, spool.folder).split() == ["True", "0", "a" * 32]
    spool.mark_sending(NOON, "s3")
    assert in_another_process(code, spool.folder).split() == ["False", "1", "a" * 32]


def test_attempt_cannot_be_created_twice(spool: Spool) -> None:
    with pytest.raises(FileExistsError):
        spool.create(ATTEMPT)
    spool.mark_sending(NOON, "s3")
    with pytest.raises(FileExistsError):
        spool.create(ATTEMPT)
    assert not spool.proves_unsent()


def test_missing_folder_proves_nothing(tmp_path: Path) -> None:
    spool = Spool.of(tmp_path, PLACE, "c" * 32)
    assert not spool.proves_unsent()
    assert (spool.sends(), spool.facts(), spool.attempt(), spool.unusable_files()) == ([], {}, {}, [])


def test_request_is_not_sent_without_a_mark(spool: Spool) -> None:
    shutil.rmtree(spool.folder)  # a temp cleaner
    with pytest.raises(FileNotFoundError):
        spool.mark_sending(NOON, "s3")


def test_full_disk_stops_the_request_and_the_proof(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            spool.mark_sending(NOON, "s3")
    assert not spool.proves_unsent()


@pytest.mark.parametrize("missing", ["intent.json", "stamp"])
def test_missing_mark_proves_nothing(spool: Spool, missing: str) -> None:
    (spool.folder / missing).unlink()
    assert not spool.proves_unsent()


def test_other_boot_proves_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "boot_id", lambda: "another")
    assert not spool.proves_unsent()


def test_unknown_boot_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "boot_id", lambda: "")
    spool = Spool.of(tmp_path, PLACE, "b" * 32)
    spool.create(ATTEMPT)
    assert not spool.proves_unsent()


def test_other_machine_proves_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "machine_id", lambda: "another")
    assert not spool.proves_unsent()


@pytest.mark.parametrize("back", [False, True])
def test_copied_spool_proves_nothing(spool: Spool, tmp_path: Path, back: bool) -> None:
    shutil.copytree(spool.folder, tmp_path / "copy")
    if back:
        shutil.rmtree(spool.folder)
        (tmp_path / "copy").rename(spool.folder)
        assert not spool.proves_unsent()
    else:
        assert not Spool(tmp_path / "copy").proves_unsent()
        assert spool.proves_unsent()


def test_marks_restored_from_a_backup_prove_nothing(spool: Spool, tmp_path: Path) -> None:
    shutil.copytree(spool.folder, tmp_path / "backup")
    spool.mark_sending(NOON, "s3")
    for path in spool.folder.iterdir():
        path.unlink()
    for path in (tmp_path / "backup").iterdir():
        shutil.copy2(path, spool.folder / path.name)
    assert sorted(path.name for path in spool.folder.iterdir()) == ["intent.json", "stamp"]
    assert not spool.proves_unsent()


def test_mark_renamed_back_proves_nothing(spool: Spool) -> None:
    spool.mark_sending(NOON, "s3")
    (spool.folder / "sends").unlink()
    (spool.folder / "sending.json").rename(spool.folder / "intent.json")
    assert not spool.proves_unsent()


# Damage to a folder: (action, file name, number).
DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["delete", "cut", "overwrite", "append", "restore", "restore all", "flip"]),
        st.sampled_from(["intent.json", "stamp", "sending.json", "sends", "facts"]),
        st.integers(0, 400),
    ),
    max_size=6,
)


def do_damage(folder: Path, backup: Path, action: str, name: str, number: int) -> None:
    path = folder / name
    if action == "restore all":
        for kept in backup.iterdir():
            shutil.copy2(kept, folder / kept.name)
    elif action == "restore":
        if (backup / name).exists():
            shutil.copy2(backup / name, path)
    elif path.exists():
        data = path.read_bytes()
        if action == "delete":
            path.unlink()
        elif action == "cut":
            path.write_bytes(data[: number % (len(data) + 1)])
        elif action == "overwrite":
            path.write_bytes(b"\0" * number)
        elif action == "append":
            path.write_bytes(data + b"x" * number)
        elif data:
            at = number % len(data)
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@settings(max_examples=150)
@given(st.integers(0, 3), st.booleans(), DAMAGE)
def test_damage_never_restores_the_proof(steps: int, interrupted: bool, damage: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        spool = Spool.of(root / "spools", PLACE, "a" * 32)
        spool.create(ATTEMPT)
        shutil.copytree(spool.folder, root / "backup")
        for step in range(steps + 1):
            if interrupted and step == steps:
                dies_within_mark_sending(spool)
            else:
                spool.mark_sending(NOON, "s3")
        spool.add_fact("request_id", "1")
        for action, name, number in damage:
            do_damage(spool.folder, root / "backup", action, name, number)
            assert not spool.proves_unsent()
        assert not spool.proves_unsent()
        spool.attempt(), spool.sends(), spool.facts()


def dies_within_mark_sending(spool: Spool) -> None:
    """Stop after the first step of the mark, as ``kill -9`` would."""
    append = spools.append_line

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    spools.append_line = die  # type: ignore[assignment]
    try:
        with pytest.raises(KeyboardInterrupt):
            spool.mark_sending(NOON, "s3")
    finally:
        spools.append_line = append


def test_marks_reach_the_disk_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    spool = Spool.of(tmp_path, PLACE, "a" * 32)
    spool.create(ATTEMPT)
    assert synced.index("intent.json") < synced.index("a" * 32)
    synced.clear()
    spool.mark_sending(NOON, "s3")
    assert synced == ["sends", "a" * 32]
    synced.clear()
    spool.add_fact("link", "https://example.com")
    assert synced == []


# --- facts ---------------------------------------------------------------------------------------------------------


def test_facts_are_found_in_order(spool: Spool) -> None:
    spool.add_fact("request_id", "1")
    spool.add_fact("link", "https://example.com/狐\n\ud800?a=b")
    spool.add_fact("request_id", "2")
    assert spool.facts() == {"request_id": ["1", "2"], "link": ["https://example.com/狐\n\ud800?a=b"]}


def test_half_written_fact_does_not_hide_others(spool: Spool) -> None:
    spool.add_fact("link", "first")
    with open(spool.folder / "facts", "ab") as file:
        file.write(b'\n{"name": "link", "val')
    spool.add_fact("link", "second")
    with open(spool.folder / "facts", "ab") as file:
        file.write(b'\n[]\n7\n{"name": 7, "value": "x"}\n{"name": "link"}\n\xff\n')
    assert spool.facts() == {"link": ["first", "second"]}


def test_threads_record_facts_concurrently(spool: Spool) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: spool.add_fact("link", f"{number}" * 50), range(200)))
    assert len(spool.facts()["link"]) == 200


# --- the attempts of a place ---------------------------------------------------------------------------------------


def test_all_attempts_of_a_place_are_found(tmp_path: Path) -> None:
    made = []
    for number, letter in enumerate("cab"):
        spool = Spool.of(tmp_path, PLACE, letter * 32)
        spool.create({"id": letter * 32})
        age(spool.folder, 100 - number)
        made.append((spool, {"id": letter * 32}))
    made[1][0].mark_sending(NOON, "s3")
    age(made[1][0].folder, 99)
    Spool.of(tmp_path, "s3://posters/other.png", "d" * 32).create(ATTEMPT)
    (made[0][0].folder.parent / "notes").mkdir()
    assert spools.attempts_in(tmp_path, PLACE) == made
    assert spools.attempts_in(tmp_path, "s3://posters/nothing.png") == []
    assert spools.attempts_in(tmp_path / "nowhere", PLACE) == []


def test_attempt_with_a_damaged_mark_is_found_too(spool: Spool, tmp_path: Path) -> None:
    arrive(spool, 0, 48).close()
    (spool.folder / "intent.json").write_bytes(b'{"attempt": [')
    assert spools.attempts_in(tmp_path, PLACE) == [(spool, {})]
    (spool.folder / "intent.json").unlink()
    assert spools.attempts_in(tmp_path, PLACE) == [(spool, {})]


def test_unreadable_directory_is_an_error(tmp_path: Path) -> None:
    spool = Spool.of(tmp_path, PLACE, "a" * 32)
    spool.folder.parent.write_bytes(b"not a folder")
    with pytest.raises(OSError, match="Not a directory"):
        spools.attempts_in(tmp_path, PLACE)


# --- recovery by another process -----------------------------------------------------------------------------------


def test_incomplete_image_is_not_found(spool: Spool) -> None:
    arrive(spool, 0, 48, seal=None).close()
    assert "0.part" in [path.name for path in spool.folder.iterdir()]
    assert (spool.complete_images(), spool.preview(), spool.complete_response()) == ([], None, None)


def test_complete_images_are_found_in_order(spool: Spool) -> None:
    for index in (10, 2, 0):
        arrive(spool, index, 16 + index).close()
    arrive(spool, 3, 99, seal=None).close()
    found = spool.complete_images()
    assert [image.index for image in found] == [0, 1, 2]
    assert widths(found) == [16, 18, 26]


def test_found_image_is_unchanged(spool: Spool) -> None:
    arrive(spool, 0, 48).close()
    (image,) = spool.complete_images()
    image.file.file.seek(0)
    assert image.file.file.read() == image_data(48)
    assert (image.content_type, image.width, image.height) == ("image/png", 48, 16)
    assert image.file.size == len(image_data(48))
    assert image.file.sha256 == _sha256(image_data(48))
    image.file.close()


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_other_files_are_skipped_and_closed(spool: Spool) -> None:
    arrive(spool, 0).close()
    arrive(spool, 1, 48).close()
    (spool.folder / "2.image").mkdir()
    (spool.folder / "notes.image").write_bytes(image_data(16))
    assert widths(spool.complete_images()) == [48]
    assert not [name for name in open_files() if str(spool.folder) in name]


def test_leftovers_are_listed_in_order(spool: Spool) -> None:
    for index in (10, 2):
        arrive(spool, index, seal=".bin").close()
    arrive(spool, 3, 48).close()
    (spool.folder / "notes.bin").write_bytes(b"x")
    assert [path.name for path in spool.unusable_files()] == ["2.bin", "10.bin"]


def test_latest_preview_is_found_and_others_are_closed(spool: Spool) -> None:
    for index in (0, 9, 10):
        arrive(spool, index, 16 + index, seal=".preview").close()
    latest = spool.preview()
    assert latest is not None
    assert latest.width == 26
    assert [name for name in open_files() if str(spool.folder) in name] == [str(spool.folder / "10.preview")]
    latest.file.close()
    assert spool.complete_images() == []


def test_missing_folder_is_empty(tmp_path: Path) -> None:
    spool = Spool.of(tmp_path, PLACE, "c" * 32)
    assert (spool.complete_images(), spool.preview(), spool.complete_response()) == ([], None, None)


_RECEIVE = """
import io, os, sys
from pathlib import Path
from airflow_provider_jojokey.img2.client import Generation
from airflow_provider_jojokey.img2.images import Image
from airflow_provider_jojokey.store.spool import Spool
spool = Spool(Path(sys.argv[1]))
images = []
for index in range(2):
    file = spool.open(index)
    file.write(Path(sys.argv[2]).read_bytes())
    file.seal()
    images.append(Image(index, file, "image/png", 48, 16, f"revised {index}"))
usage = {"total_tokens": 3, "details": {"text": 1}}
spool.mark_complete(Generation(images, usage, 7, "gpt-image-2", "1024x1024", "low", "req-1", 1.5))
os._exit(1)
"""


def test_complete_reply_outlives_its_process(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "fox.png").write_bytes(image_data(48))
    with pytest.raises(subprocess.CalledProcessError):
        in_another_process(_RECEIVE, spool.folder, tmp_path / "fox.png")
    reply = spool.complete_response()
    assert reply is not None
    assert (reply.usage, reply.created) == ({"total_tokens": 3, "details": {"text": 1}}, 7)
    assert (reply.model, reply.size, reply.quality) == ("gpt-image-2", "1024x1024", "low")
    assert (reply.request_id, reply.seconds) == ("req-1", 1.5)
    assert [(image.index, image.revised_prompt) for image in reply.images] == [
        (0, "revised 0"),
        (1, "revised 1"),
    ]
    assert {image.file.sha256 for image in reply.images} == {_sha256(image_data(48))}
    reply.close()


def test_reply_is_kept_unchanged(spool: Spool) -> None:
    kept = generation(arrive(spool, 0, 48), usage=None, created=None, request_id=None)
    spool.mark_complete(kept)
    kept.close()
    found = spool.complete_response()
    assert found is not None
    assert (found.usage, found.created, found.request_id) == (None, None, None)
    assert widths(found.images) == [48]
    names = sorted(path.name for path in spool.folder.iterdir())
    assert names == ["0.image", "intent.json", "reply.json", "stamp"]


def test_half_written_reply_is_not_complete(spool: Spool) -> None:
    kept = generation(arrive(spool, 0, 48))
    spool.mark_complete(kept)
    kept.close()
    text = (spool.folder / "reply.json").read_text()
    (spool.folder / "reply.json").rename(spool.folder / "reply.json.part")
    assert spool.complete_response() is None
    (spool.folder / "reply.json").write_text(text[: len(text) // 2])
    assert spool.complete_response() is None


@pytest.mark.parametrize("damage", ["missing", "no image"])
def test_reply_without_its_image_is_not_complete(spool: Spool, damage: str) -> None:
    kept = generation(arrive(spool, 0, 48), arrive(spool, 1, 64))
    spool.mark_complete(kept)
    kept.close()
    if damage == "missing":
        (spool.folder / "1.image").unlink()
    else:
        (spool.folder / "1.image").write_bytes(b"")
    assert spool.complete_response() is None
    assert not [name for name in open_files() if str(spool.folder) in name]


REPLY = {
    "usage": None,
    "created": 1,
    "model": "m",
    "size": "s",
    "quality": "q",
    "request_id": None,
    "seconds": 1.0,
}


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../secret.image",
        "../../secret.image",
        "..",
        ".",
        "",
        "a/../../secret.image",
        "\0",
        None,
        7,
    ],
)
def test_file_name_never_leads_out_of_the_folder(spool: Spool, name: Any) -> None:
    for folder in (spool.folder.parent, spool.folder.parent.parent):
        (folder / "secret.image").write_bytes(image_data(16))
    reply = {**REPLY, "images": [{"file": name, "index": 0, "revised_prompt": None}]}
    (spool.folder / "reply.json").write_text(json.dumps(reply))
    assert spool.complete_response() is None


def test_file_name_is_looked_up_inside_the_folder(spool: Spool) -> None:
    (spool.folder.parent / "0.image").write_bytes(image_data(16))
    arrive(spool, 0, 48).close()
    reply = {**REPLY, "images": [{"file": "../0.image", "index": 0, "revised_prompt": None}]}
    (spool.folder / "reply.json").write_text(json.dumps(reply))
    found = spool.complete_response()
    assert found is not None
    assert widths(found.images) == [48]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "7",
        '"reply"',
        "[]",
        "{}",
        '{"images": null}',
        '{"images": [{}]}',
        '{"images": []}',
        "\xff",
    ],
)
def test_malformed_reply_is_not_complete(spool: Spool, text: str) -> None:
    (spool.folder / "reply.json").write_bytes(text.encode("latin-1"))
    assert spool.complete_response() is None


def test_reply_with_unknown_fields_leaves_nothing_open(spool: Spool) -> None:
    arrive(spool, 0, 48).close()
    reply = {**REPLY, "mood": "good", "images": [{"file": "0.image", "index": 0, "revised_prompt": None}]}
    (spool.folder / "reply.json").write_text(json.dumps(reply))
    assert spool.complete_response() is None
    assert not [name for name in open_files() if str(spool.folder) in name]


# --- cleaning ------------------------------------------------------------------------------------------------------


def age(folder: Path, seconds: float) -> None:
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - seconds,) * 2)


def aged(root: Path, attempt: str, seconds: float) -> Spool:
    spool = Spool.of(root, PLACE, attempt)
    spool.create(ATTEMPT)
    arrive(spool, 0, 16).close()
    age(spool.folder, seconds)
    return spool


def test_only_old_attempts_are_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = spool_directory.prepare(tmp_path)
    old, young = aged(tmp_path, "a" * 32, 1000), aged(tmp_path, "b" * 32, 10)
    with caplog.at_level(logging.WARNING):
        spools.clean(tmp_path, max_age=100)
    assert (old.exists, young.exists) == (False, True)
    assert str(old.folder) in caplog.text
    assert str(young.folder) not in caplog.text
    assert spool_directory.prepare(tmp_path) == known


@pytest.mark.parametrize("young", ["0.image", "intent.json", "folder"])
def test_newest_file_determines_age(tmp_path: Path, young: str) -> None:
    spool = aged(tmp_path, "a" * 32, 1000)
    path = spool.folder if young == "folder" else spool.folder / young
    os.utime(path)
    spools.clean(tmp_path, max_age=100)
    assert spool.exists


def test_week_is_the_default_age(tmp_path: Path) -> None:
    day = 24 * 3600
    old, young = aged(tmp_path, "a" * 32, 7 * day + 60), aged(tmp_path, "b" * 32, 7 * day - 60)
    spools.clean(tmp_path)
    assert (old.exists, young.exists) == (False, True)


def test_other_files_are_never_deleted(tmp_path: Path) -> None:
    place = Spool.of(tmp_path, PLACE, "a" * 32).folder.parent
    others = [
        tmp_path / "2024" / "holidays",
        tmp_path / ("b" * 32) / "holidays",
        tmp_path / "2024" / ("c" * 32),
    ]
    for folder in (*others, place):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dear.jpg").write_bytes(b"x")
        os.utime(folder / "dear.jpg", (1, 1))
        os.utime(folder, (1, 1))
    (tmp_path / "letter.txt").write_text("x")
    os.utime(tmp_path / "letter.txt", (1, 1))
    spools.clean(tmp_path, max_age=100)
    assert all((folder / "dear.jpg").exists() for folder in (*others, place))
    assert (tmp_path / "letter.txt").exists()


def test_process_does_not_clean_after_every_image(tmp_path: Path) -> None:
    spools.maybe_clean(tmp_path, max_age=100)
    old = aged(tmp_path, "a" * 32, 1000)
    spools.maybe_clean(tmp_path, max_age=100)
    assert old.exists
    spools.clean(tmp_path, max_age=100)
    assert not old.exists


def test_cleaning_an_empty_directory_does_nothing(tmp_path: Path) -> None:
    spools.clean(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    spools.clean(tmp_path / "file")


def test_facts_belong_to_the_latest_request(spool: Spool) -> None:
    spool.mark_sending("2026-11-28T10:00:00+00:00", "s3")
    spool.add_fact("request_id", "of-the-rejected-request")
    spool.mark_sending("2026-11-28T10:01:00+00:00", "s3")
    assert spool.facts() == {}

    spool.add_fact("request_id", "of-the-resent-request")
    assert spool.facts() == {"request_id": ["of-the-resent-request"]}
