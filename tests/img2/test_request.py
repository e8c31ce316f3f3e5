"""Valid requests, and rejections with advice."""

# ruff: noqa: RUF001 - a row is a line; people do write sizes with a multiplication sign
from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_provider_jojokey.img2.request import ImageRequest, nearest_size, parse_size, problems

EDGES = st.integers(1, 9999)
STEPS = st.integers(1, 240).map(lambda steps: steps * 16)


def is_valid(width: int, height: int) -> bool:
    """The rules of the API reference, written independently."""
    return (
        width % 16 == 0
        and height % 16 == 0
        and max(width, height) <= 3840
        and max(width, height) <= 3 * min(width, height)
        and 655_360 <= width * height <= 8_294_400
    )


def problem_of(**fields: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        ImageRequest(**{"prompt": "a fox", **fields})
    return str(caught.value)


# --- sizes ---------------------------------------------------------------------------------------------------------


@given(EDGES, EDGES)
def test_suggested_size_is_valid(width: int, height: int) -> None:
    pixels = parse_size(nearest_size(width, height))
    assert pixels is not None
    assert is_valid(*pixels)


@given(STEPS.flatmap(lambda width: st.tuples(st.just(width), STEPS)).filter(lambda pixels: is_valid(*pixels)))
def test_valid_size_is_its_own_nearest(pixels: tuple[int, int]) -> None:
    size = "{}x{}".format(*pixels)
    assert nearest_size(*pixels) == size
    assert ImageRequest("a fox", size=size).pixels == pixels


@given(st.one_of(EDGES, STEPS), st.one_of(EDGES, STEPS))
def test_only_valid_sizes_are_accepted(width: int, height: int) -> None:
    found = list(problems({"size": f"{width}x{height}"}))
    assert (found == []) == is_valid(width, height)
    for problem in found:
        assert f"nearest valid size is '{nearest_size(width, height)}'" in problem


@given(EDGES, EDGES, STEPS, STEPS)
def test_suggested_size_is_the_nearest(width: int, height: int, other_width: int, other_height: int) -> None:
    assume(is_valid(other_width, other_height))

    def distance(pixels: tuple[int, int] | None) -> float:
        assert pixels is not None
        return math.hypot(math.log(pixels[0] / width), math.log(pixels[1] / height))

    assert distance(parse_size(nearest_size(width, height))) <= distance((other_width, other_height)) + 1e-9


@pytest.mark.parametrize(
    ("size", "nearest"), [("1920x1080", "1920x1088"), ("4096x4096", "2880x2880"), ("1024x1000", "1024x1008")]
)
def test_nearest_sizes_of_well_known_sizes(size: str, nearest: str) -> None:
    assert f"'{nearest}'" in problem_of(size=size)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("1000x1024", "multiples of 16"),
        ("3856x2048", "longer than 3,840"),
        ("3072x1008", "at most 3 times"),
        ("512x512", "655,360 to 8,294,400 pixels, not 262,144"),
        ("3840x3840", "655,360 to 8,294,400 pixels, not 14,745,600"),
    ],
)
def test_error_names_broken_size_rule(size: str, words: str) -> None:
    assert words in problem_of(size=size)


@pytest.mark.parametrize(
    "size", ["1024×1024", "1024*1024", "1024X1024", " 1024 x 1024 ", "1024x1024px", "1024 x1024"]
)
def test_misspelled_size_is_corrected(size: str) -> None:
    assert "write '1024x1024'" in problem_of(size=size)


@pytest.mark.parametrize(
    "size", ["", "big", "1024", "x1024", "0x0", "-16x16", "1024x1024x3", "1e3x1e3", "AUTO", "1024x0"]
)
def test_malformed_size_is_rejected(size: str) -> None:
    assert "size=" in problem_of(size=size) or "size must be text" in problem_of(size=size)


def test_auto_size_has_no_pixels() -> None:
    assert ImageRequest("a fox", size="auto").pixels is None


def test_hostile_size_is_shortened_in_error() -> None:
    assert len(problem_of(size="9" * 10_000)) < 300


def test_sizes_of_other_models_are_not_checked() -> None:
    assert ImageRequest("a fox", model="dall-e-3", size="1792x1000").pixels == (1792, 1000)
    assert "plain x" in problem_of(model="dall-e-3", size="1792×1000")


# --- the other fields -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["狐", "a" * 32_000, "🦊" * 32_000, " a fox\n"])
def test_prompt_has_1_to_32000_characters(prompt: str) -> None:
    assert ImageRequest(prompt).body()["prompt"] == prompt


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": "a" * 32_001}, "prompt has 32,001 characters"),
        ({"prompt": None}, "prompt must be text, not NoneType"),
        ({"prompt": b"fox"}, "prompt must be text, not bytes"),
        ({"model": ""}, "model must be text"),
        ({"model": None}, "model must be text"),
        ({"size": None}, "size must be text"),
        ({"quality": " "}, "quality must be text"),
        ({"quality": 1}, "quality must be text"),
        *[({"n": n}, "n must be a whole number from 1 to 10") for n in (0, 11, -1, 1.0, "2", True, None)],
        *[({"background": value}, "background must be one of auto, opaque, transparent") for value in ("white", "", 1)],
        *[({"output_format": value}, "output_format must be one of png, jpeg, webp") for value in ("jpg", "PNG", 1)],
        *[({"output_format": "jpeg", "output_compression": value}, "output_compression must be a whole number from 0 to 100")
          for value in (-1, 101, 50.0, "50", True)],
        *[({"output_compression": 50, "output_format": value}, "output_format='jpeg' or 'webp'") for value in (None, "png")],
        ({"background": "transparent", "output_format": "jpeg"}, "output_format='png' or 'webp'"),
        ({"moderation": "none"}, "moderation must be one of auto, low"),
        *[({"stream": value}, "stream must be True or False") for value in ("False", None, 1)],
        *[({"partial_images": value}, "partial_images must be a whole number from 0 to 3") for value in (-1, 4, True, "1")],
        ({"extra_body": []}, "extra_body must be a dict with text keys"),
        ({"extra_body": {1: 2}}, "extra_body must be a dict with text keys"),
        ({"extra_body": {"n": 2, "size": "auto"}}, "extra_body repeats n, size"),
        ({"extra_body": {"stream": True}}, "extra_body repeats stream"),
        ({"extra_body": {"x": {1, 2}}}, "extra_body cannot be sent as JSON"),
        ({"extra_body": {"x": b"bytes"}}, "extra_body cannot be sent as JSON"),
        ({"extra_body": {"x": float("nan")}}, "extra_body cannot be sent as JSON"),
        ({"extra_body": {"x": {1: 2, "a": 3}}}, "extra_body cannot be sent as JSON"),
    ],
)  # fmt: skip
def test_broken_rule_is_rejected_with_advice(fields: dict[str, Any], words: str) -> None:
    assert words in problem_of(**fields)


def test_all_problems_are_listed_together() -> None:
    message = problem_of(prompt="", n=0, quality="", moderation="x", size="9x9")
    for word in ("prompt", "n must", "quality", "moderation", "size="):
        assert word in message


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 10},
        {"background": "transparent"},
        {"background": "transparent", "output_format": "webp"},
        {"output_format": "jpeg", "output_compression": 0},
        {"output_format": "webp", "output_compression": 100},
        {"moderation": "low"},
        {"stream": True, "partial_images": 0},
        {"extra_body": {"user": "me", "style": {"a": [1, None, "中"]}}},
        {"quality": "medium"},
        {"model": "gpt-image-2-mini"},
    ],
)
def test_documented_values_log_no_warning(fields: dict[str, Any]) -> None:
    assert ImageRequest("a fox", **fields).warnings() == []


def test_unknown_names_log_a_warning() -> None:
    (model,) = ImageRequest("a fox", model="dall-e-3").warnings()
    (quality,) = ImageRequest("a fox", quality="hd", stream=True).warnings()
    assert "dall-e-3" in model
    assert "gateway checks" in model
    assert "'hd'" in quality
    assert "low, medium, high, auto" in quality


def test_request_beyond_cloudflare_timeout_logs_warning() -> None:
    (warning,) = ImageRequest("a fox", quality="high").warnings()
    assert "524" in warning
    assert "stream=True" in warning
    assert ImageRequest("a fox", quality="high", stream=True).warnings() == []


def test_unrendered_values_are_not_checked() -> None:
    assert list(problems({})) == []
    assert list(problems({"output_compression": 50})) == []
    assert list(problems({"background": "transparent"})) == []
    assert list(problems({"n": 0})) == ["n must be a whole number from 1 to 10, not 0"]


# --- the body and the fingerprint -----------------------------------------------------------------------------------


def test_body_has_requested_fields_only() -> None:
    assert ImageRequest("a fox").body() == {
        "model": "gpt-image-2",
        "prompt": "a fox",
        "size": "1024x1024",
        "quality": "low",
        "n": 1,
    }
    everything = ImageRequest(
        "a fox",
        model="m",
        size="auto",
        quality="high",
        n=2,
        background="opaque",
        output_format="webp",
        output_compression=0,
        moderation="low",
        stream=True,
        partial_images=0,
        extra_body={"user": "me"},
    ).body()
    assert everything == {
        "model": "m",
        "prompt": "a fox",
        "size": "auto",
        "quality": "high",
        "n": 2,
        "background": "opaque",
        "output_format": "webp",
        "output_compression": 0,
        "moderation": "low",
        "stream": True,
        "partial_images": 0,
        "user": "me",
    }


def test_previews_are_requested_in_streams_only() -> None:
    assert "partial_images" not in ImageRequest("a fox", partial_images=3).body()
    assert ImageRequest("a fox", stream=True, partial_images=3).body()["partial_images"] == 3


CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
VALID = st.fixed_dictionaries(
    {"prompt": st.text(CHARACTERS, min_size=1, max_size=20).filter(str.strip)},
    optional={
        "model": st.sampled_from(["gpt-image-2", "other"]),
        "size": st.sampled_from(["auto", "1024x1024", "1536x1024"]),
        "quality": st.sampled_from(["low", "high"]),
        "n": st.integers(1, 10),
        "background": st.sampled_from([None, "opaque"]),
        "output_format": st.sampled_from([None, "png", "jpeg"]),
        "moderation": st.sampled_from([None, "low"]),
        "extra_body": st.sampled_from(
            [None, {}, {"user": "me"}, {"user": "you"}, {"seed": {"b": 1, "a": [2]}}]
        ),
    },
)


@given(VALID, VALID)
def test_fingerprints_are_equal_only_for_equal_bodies(
    fields: dict[str, Any], other_fields: dict[str, Any]
) -> None:
    first, second = ImageRequest(**fields), ImageRequest(**other_fields)
    assert (first.fingerprint("h") == second.fingerprint("h")) == (first.body() == second.body())


@given(VALID)
def test_fingerprint_depends_on_host_and_image_only(fields: dict[str, Any]) -> None:
    request = ImageRequest(**fields)
    fingerprint = request.fingerprint("https://a")
    assert re.fullmatch("[0-9a-f]{64}", fingerprint)
    assert fingerprint == ImageRequest(**fields, stream=True, partial_images=1).fingerprint("https://a")
    assert fingerprint != request.fingerprint("https://b")
    extra_body = {**(fields.get("extra_body") or {}), "response_format": "b64_json"}
    assert fingerprint == ImageRequest(**{**fields, "extra_body": extra_body}).fingerprint("https://a")


def test_fingerprint_ignores_order_of_keys() -> None:
    request = ImageRequest("a fox", extra_body={"a": 1, "b": {"c": 2, "d": 3}})
    other = ImageRequest("a fox", extra_body={"b": {"d": 3, "c": 2}, "a": 1})
    assert request.fingerprint("h") == other.fingerprint("h")


def test_fingerprints_never_change() -> None:
    """Receipts store fingerprints: a change would pay for every image again."""
    assert (
        ImageRequest("狐", size="1536x1024", extra_body={"user": "me"}).fingerprint("https://api.jojokey.com")
        == "85dfee0d06ac5e921470f0cf06e76cd4e43477da3a9a3bbaa274d4cd7a01cc76"
    )


@given(VALID)
def test_body_is_serializable(fields: dict[str, Any]) -> None:
    body = ImageRequest(**fields).body()
    assert json.loads(json.dumps(body, allow_nan=False)) == body


def test_request_is_immutable() -> None:
    with pytest.raises(AttributeError):
        ImageRequest("a fox").n = 99  # type: ignore[misc]
