"""The spool: what another process finds on disk, whatever moment this one died at."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from airflow_provider_jojokey.img2.client import Generation
from airflow_provider_jojokey.img2.images import Image, ImageFile
from airflow_provider_jojokey.store import spool as spools
from airflow_provider_jojokey.store.spool import Spool

PLACE = "s3://posters/fox.png"


def picture(width: int) -> bytes:
    out = io.BytesIO()
    Picture.new("RGB", (width, 16), "orange").save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    one = Spool.of(tmp_path, PLACE, "a" * 32)
    one.create()
    return one


def arrive(spool: Spool, index: int, width: int | None = None, seal: str | None = ".image") -> ImageFile:
    file = spool.open(index)
    file.write(picture(width) if width else b"no image at all")
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
        timeout=60,
        check=True,
    )
    return done.stdout


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


# --- where ---------------------------------------------------------------------------------------------------------


def test_each_attempt_at_each_place_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = {
        Spool.of(tmp_path, place, attempt).folder
        for place in (PLACE, "s3://posters/../../etc/passwd", "s3://posters/狐狸.png")
        for attempt in ("a" * 32, "b" * 32)
    }
    assert len(folders) == 6
    assert all(folder.parent.parent == tmp_path for folder in folders)
    assert Spool.of(tmp_path, PLACE, "a" * 32) == Spool.of(tmp_path, PLACE, "a" * 32)


def test_a_spool_is_there_once_it_was_made_and_until_it_is_discarded(tmp_path: Path) -> None:
    one, other = (Spool.of(tmp_path, PLACE, letter * 32) for letter in "ab")
    assert not one.exists
    one.create()
    one.create()
    other.create()
    assert one.exists
    one.discard()
    assert (one.exists, other.exists) == (False, True)
    other.discard()
    other.discard()
    assert list(tmp_path.iterdir()) == []


def test_making_one_spool_while_its_neighbour_is_discarded_works(tmp_path: Path) -> None:
    def come_and_go(letter: str) -> None:
        one = Spool.of(tmp_path, PLACE, letter * 32)
        for _ in range(200):
            one.create()
            assert one.exists
            one.discard()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, "abcd"))


def test_only_this_user_may_look_into_it(tmp_path: Path) -> None:
    root = tmp_path / "new" / "spools"
    spools.prepare(root)
    one = Spool.of(root, PLACE, "a" * 32)
    one.create()
    assert (mode(root), mode(one.folder)) == ("0o700", "0o700")


def test_the_default_place_is_this_users_own() -> None:
    assert str(os.getuid()) in spools.default_root().name


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"file"):
        spools.prepare(tmp_path / "file" / "spools")
    with pytest.raises(OSError, match=r"file"):
        Spool.of(tmp_path / "file", PLACE, "a" * 32).create()


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of another user."""
    if os.getuid() == 0:
        folder = tmp_path / "foreign"
        folder.mkdir()
        os.chown(folder, 12345, 12345)
        return folder
    if Path("/").stat().st_uid == os.getuid():
        pytest.skip("nothing here belongs to another user")
    return Path("/")


def test_a_folder_of_another_user_is_refused(foreign: Path) -> None:
    with pytest.raises(PermissionError, match="another user"):
        spools.prepare(foreign)


def test_a_link_to_a_folder_of_another_user_is_refused(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(foreign)
    with pytest.raises(PermissionError, match="another user"):
        spools.prepare(tmp_path / "link")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a link for another user")
def test_another_users_link_to_a_folder_of_ones_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    os.lchown(tmp_path / "link", 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        spools.prepare(tmp_path / "link")


def test_ones_own_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert spools.prepare(tmp_path / "link") == spools.prepare(tmp_path / "mine")


# --- the id --------------------------------------------------------------------------------------------------------


def test_the_id_stays_and_another_disk_has_another(tmp_path: Path) -> None:
    known = spools.prepare(tmp_path / "one")
    assert spools.prepare(tmp_path / "one") == known
    assert spools.prepare(tmp_path / "two") != known
    assert uuid.UUID(hex=known)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["id"]


def test_threads_that_start_at_once_agree_on_the_id(tmp_path: Path) -> None:
    for number in range(20):
        with ThreadPoolExecutor(8) as pool:
            ids = set(pool.map(spools.prepare, [tmp_path / str(number)] * 8))
        assert len(ids) == 1


_PREPARE = """
import sys
from pathlib import Path
from airflow_provider_jojokey.store import spool
print("ready", flush=True)
for line in sys.stdin:
    print(spool.prepare(Path(line.strip())), flush=True)
"""


def test_processes_that_start_at_once_agree_on_the_id(tmp_path: Path) -> None:
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
            worker.communicate(timeout=30)


def test_an_empty_id_that_a_power_cut_left_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "id").touch()
    known = spools.prepare(tmp_path)
    assert uuid.UUID(hex=known)
    assert spools.prepare(tmp_path) == known
    assert [path.name for path in tmp_path.iterdir()] == ["id"]


# --- what another process finds ------------------------------------------------------------------------------------


def test_what_is_still_arriving_is_worth_nothing(spool: Spool) -> None:
    arrive(spool, 0, 48, seal=None).close()
    assert [path.name for path in spool.folder.iterdir()] == ["0.part"]
    assert (spool.whole_images(), spool.preview(), spool.whole_reply()) == ([], None, None)


def test_whole_images_are_found_in_the_order_they_came(spool: Spool) -> None:
    for index in (10, 2, 0):
        arrive(spool, index, 16 + index).close()
    arrive(spool, 3, 99, seal=None).close()
    found = spool.whole_images()
    assert [image.index for image in found] == [0, 1, 2]
    assert widths(found) == [16, 18, 26]


def test_a_found_image_is_as_it_was(spool: Spool) -> None:
    arrive(spool, 0, 48).close()
    (image,) = spool.whole_images()
    image.file.file.seek(0)
    assert image.file.file.read() == picture(48)
    assert (image.content_type, image.width, image.height) == ("image/png", 48, 16)
    assert image.file.size == len(picture(48))
    assert image.file.sha256 == _sha256(picture(48))
    image.file.close()


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_what_is_no_image_is_passed_over_and_closed(spool: Spool) -> None:
    arrive(spool, 0).close()
    arrive(spool, 1, 48).close()
    (spool.folder / "2.image").mkdir()
    (spool.folder / "notes.image").write_bytes(picture(16))
    assert widths(spool.whole_images()) == [48]
    assert not [name for name in open_files() if str(spool.folder) in name]


def test_of_several_previews_the_latest_is_found_and_the_others_are_closed(spool: Spool) -> None:
    for index in (0, 9, 10):
        arrive(spool, index, 16 + index, seal=".preview").close()
    latest = spool.preview()
    assert latest is not None
    assert latest.width == 26
    assert [name for name in open_files() if str(spool.folder) in name] == [str(spool.folder / "10.preview")]
    latest.file.close()
    assert spool.whole_images() == []


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    one = Spool.of(tmp_path, PLACE, "c" * 32)
    assert (one.whole_images(), one.preview(), one.whole_reply()) == ([], None, None)


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
spool.keep(Generation(images, usage, 7, "gpt-image-2", "1024x1024", "low", "req-1", 1.5))
os._exit(1)
"""


def test_a_whole_reply_outlives_the_process_that_received_it(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "fox.png").write_bytes(picture(48))
    with pytest.raises(subprocess.CalledProcessError):
        in_another_process(_RECEIVE, spool.folder, tmp_path / "fox.png")
    reply = spool.whole_reply()
    assert reply is not None
    assert (reply.usage, reply.created) == ({"total_tokens": 3, "details": {"text": 1}}, 7)
    assert (reply.model, reply.size, reply.quality) == ("gpt-image-2", "1024x1024", "low")
    assert (reply.request_id, reply.seconds) == ("req-1", 1.5)
    assert [(image.index, image.revised_prompt) for image in reply.images] == [
        (0, "revised 0"),
        (1, "revised 1"),
    ]
    assert {image.file.sha256 for image in reply.images} == {_sha256(picture(48))}
    reply.close()


def test_a_reply_is_kept_as_it_was(spool: Spool) -> None:
    kept = generation(arrive(spool, 0, 48), usage=None, created=None, request_id=None)
    spool.keep(kept)
    kept.close()
    found = spool.whole_reply()
    assert found is not None
    assert (found.usage, found.created, found.request_id) == (None, None, None)
    assert widths(found.images) == [48]
    assert sorted(path.name for path in spool.folder.iterdir()) == ["0.image", "reply.json"]


def test_a_reply_that_was_half_written_down_is_no_whole_reply(spool: Spool) -> None:
    kept = generation(arrive(spool, 0, 48))
    spool.keep(kept)
    kept.close()
    text = (spool.folder / "reply.json").read_text()
    (spool.folder / "reply.json").rename(spool.folder / "reply.json.part")
    assert spool.whole_reply() is None
    (spool.folder / "reply.json").write_text(text[: len(text) // 2])
    assert spool.whole_reply() is None


@pytest.mark.parametrize("damage", ["missing", "no image"])
def test_a_reply_whose_image_is_lost_is_no_whole_reply_and_leaves_nothing_open(
    spool: Spool, damage: str
) -> None:
    kept = generation(arrive(spool, 0, 48), arrive(spool, 1, 64))
    spool.keep(kept)
    kept.close()
    if damage == "missing":
        (spool.folder / "1.image").unlink()
    else:
        (spool.folder / "1.image").write_bytes(b"")
    assert spool.whole_reply() is None
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
def test_a_file_name_in_a_reply_never_leads_out_of_its_folder(spool: Spool, name: Any) -> None:
    for folder in (spool.folder.parent, spool.folder.parent.parent):
        (folder / "secret.image").write_bytes(picture(16))
    reply = {**REPLY, "images": [{"file": name, "index": 0, "revised_prompt": None}]}
    (spool.folder / "reply.json").write_text(json.dumps(reply))
    assert spool.whole_reply() is None


def test_a_file_name_in_a_reply_is_looked_for_inside_its_folder(spool: Spool) -> None:
    (spool.folder.parent / "0.image").write_bytes(picture(16))
    arrive(spool, 0, 48).close()
    reply = {**REPLY, "images": [{"file": "../0.image", "index": 0, "revised_prompt": None}]}
    (spool.folder / "reply.json").write_text(json.dumps(reply))
    found = spool.whole_reply()
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
def test_a_reply_that_is_none_is_no_whole_reply(spool: Spool, text: str) -> None:
    (spool.folder / "reply.json").write_bytes(text.encode("latin-1"))
    assert spool.whole_reply() is None


def test_a_reply_with_more_than_is_known_leaves_nothing_open(spool: Spool) -> None:
    arrive(spool, 0, 48).close()
    reply = {**REPLY, "mood": "good", "images": [{"file": "0.image", "index": 0, "revised_prompt": None}]}
    (spool.folder / "reply.json").write_text(json.dumps(reply))
    assert spool.whole_reply() is None
    assert not [name for name in open_files() if str(spool.folder) in name]


# --- cleaning ------------------------------------------------------------------------------------------------------


def _aged(root: Path, attempt: str, age: float) -> Spool:
    one = Spool.of(root, PLACE, attempt)
    one.create()
    arrive(one, 0, 16).close()
    os.utime(one.folder, (time.time() - age,) * 2)
    return one


def test_only_what_nobody_came_back_for_is_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = spools.prepare(tmp_path)
    old, young = _aged(tmp_path, "a" * 32, 1000), _aged(tmp_path, "b" * 32, 10)
    with caplog.at_level(logging.WARNING):
        spools.clean(tmp_path, max_age=100)
    assert (old.exists, young.exists) == (False, True)
    assert str(old.folder) in caplog.text
    assert str(young.folder) not in caplog.text
    assert spools.prepare(tmp_path) == known


def test_a_week_is_the_default_age(tmp_path: Path) -> None:
    day = 24 * 3600
    old, young = _aged(tmp_path, "a" * 32, 7 * day + 60), _aged(tmp_path, "b" * 32, 7 * day - 60)
    spools.clean(tmp_path)
    assert (old.exists, young.exists) == (False, True)


def test_what_is_no_spool_is_never_deleted(tmp_path: Path) -> None:
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


def test_one_process_does_not_look_for_old_spools_with_every_image(tmp_path: Path) -> None:
    spools.clean_now_and_then(tmp_path, max_age=100)
    old = _aged(tmp_path, "a" * 32, 1000)
    spools.clean_now_and_then(tmp_path, max_age=100)
    assert old.exists
    spools.clean(tmp_path, max_age=100)
    assert not old.exists


def test_cleaning_where_nothing_is_does_nothing(tmp_path: Path) -> None:
    spools.clean(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    spools.clean(tmp_path / "file")


def test_facts_belong_to_the_latest_request(spool: Spool) -> None:
    spool.mark_sending("2026-11-28T10:00:00+00:00", "s3")
    spool.note("request_id", "of-the-rejected-request")
    spool.mark_sending("2026-11-28T10:01:00+00:00", "s3")
    assert spool.facts() == {}

    spool.note("request_id", "of-the-resent-request")
    assert spool.facts() == {"request_id": ["of-the-resent-request"]}
