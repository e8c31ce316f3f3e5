"""Buckets and keys of images and receipts."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_provider_jojokey.store.keys import (
    MAX_KEY_BYTES,
    RECEIPTS,
    Destination,
    bucket_problems,
    extension_warning,
    key_problems,
    split,
    split_uri,
)

PARTS = st.text(
    alphabet=st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/{}"), min_size=1, max_size=12
)
KEYS = st.builds(
    lambda folders, name, marks, end: "/".join([*folders, name + marks + end]),
    st.lists(PARTS, max_size=3),
    PARTS,
    st.sampled_from(["", "{index}", "-{index}", "{index}-{index}", ".{ext}", "-{index}.{ext}"]),
    st.sampled_from(["", ".png", ".tar.gz", ".", "x"]),
).filter(lambda key: not list(key_problems(key)))
EXTENSIONS = st.sampled_from(["png", "jpg", "webp"])


@pytest.mark.parametrize(
    ("key", "n", "index", "stored"),
    [
        ("hero.png", 1, 0, "hero.png"),
        ("hero.png", 2, 0, "hero-0.png"),
        ("hero.png", 2, 1, "hero-1.png"),
        ("a.b/hero", 2, 1, "a.b/hero-1"),
        ("hero.{ext}", 1, 0, "hero.webp"),
        ("hero.{ext}", 3, 2, "hero-2.webp"),
        ("{index}/hero.{ext}", 3, 2, "2/hero.webp"),
        ("hero-{index}.png", 1, 0, "hero-0.png"),
        ("hero.tar.gz", 2, 1, "hero.tar-1.gz"),
        (".png", 2, 1, ".png-1"),
        ("海报/{ext}/狐.png", 2, 0, "海报/webp/狐-0.png"),
        ("hero.png", 1, 1, "hero-1.png"),
    ],
)
def test_index_and_type_are_filled_in(key: str, n: int, index: int, stored: str) -> None:
    assert Destination("posters", key, n).key_for(index, "webp") == stored


@given(KEYS, st.integers(1, 10), st.integers(0, 127), st.integers(0, 127), EXTENSIONS, EXTENSIONS)
def test_two_images_never_have_the_same_key(
    key: str, n: int, index: int, other: int, ext: str, ext2: str
) -> None:
    assume(index != other)
    place = Destination("posters", key, n)
    assert place.key_for(index, ext) != place.key_for(other, ext)
    if "{ext}" not in key:
        assert place.key_for(index, ext) == place.key_for(index, ext2)


@given(KEYS, st.integers(1, 10), st.integers(0, 127), EXTENSIONS)
def test_image_key_is_valid_in_s3(key: str, n: int, index: int, extension: str) -> None:
    stored = Destination("posters", key, n).key_for(index, extension)
    assert not list(key_problems(stored))
    assert "{index}" not in stored
    assert "{ext}" not in stored


@given(KEYS, KEYS, st.integers(1, 10), st.integers(0, 127), EXTENSIONS)
def test_receipt_key_is_never_an_image_key(key: str, other: str, n: int, index: int, extension: str) -> None:
    receipt = Destination("posters", key, n).receipt_key
    assert receipt.startswith(RECEIPTS)
    assert receipt.endswith(".json")
    assert receipt != Destination("posters", other, n).key_for(index, extension)
    assert len(receipt.encode()) <= MAX_KEY_BYTES


@given(KEYS, KEYS)
def test_different_keys_have_different_receipts(key: str, other: str) -> None:
    assume(key != other)
    assert Destination("posters", key).receipt_key != Destination("posters", other).receipt_key


@given(KEYS, st.integers(1, 10), st.integers(1, 10))
def test_receipt_key_ignores_number_of_images(key: str, n: int, other: int) -> None:
    assert Destination("posters", key, n).receipt_key == Destination("posters", key, other).receipt_key


def test_receipt_is_in_the_bucket_of_its_images() -> None:
    assert (
        Destination("posters", "2026/hero-{index}.{ext}").receipt_key
        == "_jojokey/2026/hero-{index}.{ext}.json"
    )


def test_longest_key_leaves_room_for_additions() -> None:
    longest = "海" * ((MAX_KEY_BYTES - len(RECEIPTS) - 64) // 3)
    place = Destination("posters", longest, 10)
    assert len(place.key_for(127, "webp").encode()) <= MAX_KEY_BYTES
    assert len(place.receipt_key.encode()) + len(".preview.webp") <= MAX_KEY_BYTES
    with pytest.raises(ValueError, match="too long: S3 allows"):
        Destination("posters", longest + "海海")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "does not name an object"),
        ("posters/", "does not name an object"),
        ("/hero.png", "empty"),
        ("a//hero.png", "empty"),
        ("a/./hero.png", "'.'"),
        ("a/../hero.png", "'..'"),
        ("..", "'..'"),
        ("_jojokey/hero.png", "reserved for receipts"),
        ("a\nb.png", "control characters"),
        ("a\x7fb.png", "control characters"),
        ("a\ud800b.png", "unpaired surrogates"),
        ("gs://posters/hero.png", "pass s3://bucket/key"),
        ("https://posters.s3.amazonaws.com/hero.png", "pass s3://bucket/key"),
    ],
)
def test_invalid_key_is_rejected(key: str, words: str) -> None:
    with pytest.raises(ValueError, match="s3_key") as caught:
        Destination("posters", key)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["_jojokey", "a/_jojokey/hero.png", "..hero", "a.", " hero.png", "hero png", "{index}", "{ext}", "{x}"],
)
def test_unusual_keys_are_valid(key: str) -> None:
    assert Destination("posters", key).key == key


ACCESS_POINTS = [
    "arn:aws:s3:us-east-1:123456789012:accesspoint/posters",
    "arn:aws:s3:us-east-1:123456789012:accesspoint:posters",
    "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/posters",
    "arn:aws-us-gov:s3:us-gov-west-1:123456789012:accesspoint/posters",
    "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap",
    "arn:aws:s3-object-lambda:us-east-1:123456789012:accesspoint/posters",
    "arn:aws:s3-outposts:us-east-1:123456789012:outpost/op-01ac5d28a6a232904/accesspoint/posters",
    "arn:aws:s3-outposts:us-east-1:123456789012:outpost:op-01ac5d28a6a232904:accesspoint:posters",
]


@pytest.mark.parametrize(
    "bucket", ["posters", "my.posters-2026", "tenant:posters", "posters-x1-s3alias", *ACCESS_POINTS]
)
def test_bucket_names_are_valid(bucket: str) -> None:
    assert list(bucket_problems(bucket)) == []
    assert Destination(bucket, "hero.png").uri("hero.png") == f"s3://{bucket}/hero.png"


@pytest.mark.parametrize("bucket", ACCESS_POINTS)
@pytest.mark.parametrize("key", ["hero.png", "a/b/accesspoint/hero.png", "arn:aws:s3:x/y.png"])
def test_uri_of_an_access_point_is_split_after_its_arn(bucket: str, key: str) -> None:
    uri = Destination(bucket, key).uri(key)
    assert split_uri(uri) == (bucket, key)
    assert split(None, uri) == (bucket, key)
    assert Destination.parse(None, uri) == Destination(bucket, key)


@pytest.mark.parametrize(
    ("bucket", "words"),
    [
        ("arn:aws:s3:::posters", "pass its name, 'posters'"),
        ("arn:aws:s3:us-east-1:123456789012:bucket/posters", "not the ARN of an access point"),
        ("arn:aws:s3:us-east-1:12345:accesspoint/posters", "not the ARN of an access point"),
        ("arn:aws:s3-outposts:us-east-1:123456789012:accesspoint/posters", "not the ARN of an access point"),
        ("arn:aws:s3:us-east-1:123456789012:accesspoint/posters/spring", "not the ARN of an access point"),
        ("s3://posters", "pass the bucket's name alone"),
        ("posters/spring", "put the part after the slash into s3_key"),
        ("aws_default@posters", "as aws_conn_id"),
    ],
)
def test_message_says_how_to_correct_the_bucket(bucket: str, words: str) -> None:
    with pytest.raises(ValueError, match="s3_bucket=") as caught:
        Destination(bucket, "hero.png")
    assert words in str(caught.value)


def test_default_bucket_is_used_only_without_a_bucket() -> None:
    def unexpected() -> str:
        raise AssertionError

    assert Destination.parse("posters", "a.png", 1, unexpected).bucket == "posters"
    assert Destination.parse(None, "s3://posters/a.png", 1, unexpected).bucket == "posters"
    assert Destination.parse(None, "a.png", 1, lambda: "default").bucket == "default"
    assert Destination.parse("", "s3:///a.png", 1, lambda: "default").uri("a.png") == "s3://default/a.png"


@pytest.mark.parametrize("bucket", ["", "a", "-posters", "post ers", "posters\n", "海报", "x" * 300])
def test_invalid_bucket_is_rejected(bucket: str) -> None:
    with pytest.raises(ValueError, match="s3_bucket"):
        Destination(bucket, "hero.png")


@pytest.mark.parametrize(
    ("s3_bucket", "s3_key", "found"),
    [
        ("posters", "hero.png", ("posters", "hero.png")),
        (None, "s3://posters/a/hero.png", ("posters", "a/hero.png")),
        ("", "s3://posters/hero.png", ("posters", "hero.png")),
        (None, "hero.png", (None, "hero.png")),
        ("", "hero.png", (None, "hero.png")),
        (None, "s3://posters", ("posters", "")),
    ],
)
def test_key_may_be_an_s3_url(s3_bucket: str | None, s3_key: str, found: tuple[str | None, str]) -> None:
    assert split(s3_bucket, s3_key) == found


def test_two_buckets_are_rejected() -> None:
    with pytest.raises(ValueError, match="each name a bucket"):
        Destination.parse("posters", "s3://others/hero.png")


@pytest.mark.parametrize(
    ("s3_bucket", "s3_key"), [(None, "hero.png"), ("", "hero.png"), (None, "s3:///hero.png")]
)
def test_missing_bucket_is_rejected(s3_bucket: str | None, s3_key: str) -> None:
    with pytest.raises(ValueError, match="s3_bucket is missing"):
        Destination.parse(s3_bucket, s3_key)


@pytest.mark.parametrize(
    ("key", "extension", "warned"),
    [
        ("hero.png", "png", False),
        ("hero.PNG", "png", False),
        ("hero.jpg", "jpg", False),
        ("hero.jpeg", "jpg", False),
        ("hero.JPEG", "jpg", False),
        ("hero", "png", False),
        ("hero.bin", "png", False),
        ("hero.2026", "png", False),
        ("hero.png", "jpg", True),
        ("hero.jpeg", "png", True),
        ("hero.png", "webp", True),
        ("hero.gif", "png", True),
        ("hero.avif", "webp", True),
    ],
)
def test_extension_of_another_type_logs_a_warning(key: str, extension: str, warned: bool) -> None:
    warning = extension_warning(key, extension)
    assert (warning is not None) is warned
    if warning:
        assert key in warning
        assert extension.upper() in warning
        assert "{ext}" in warning
