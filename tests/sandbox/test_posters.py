# ruff: noqa: RUF001 - Chinese prompts have Chinese punctuation
"""Clients receive real images of the requested size and format."""

from __future__ import annotations

import base64
import io
import time

import openai
import pytest
from PIL import Image

from airflow_provider_jojokey.sandbox import Gateway, draw_poster
from tests.support.sandbox_client import post_to


def client_of(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.token, max_retries=0)


def image_of(encoded: str | None) -> Image.Image:
    assert encoded
    image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
    image.load()
    return image


def test_openai_sdk_gets_an_image(artist: Gateway) -> None:
    reply = client_of(artist).images.generate(
        model="gpt-image-2", prompt="A red fox", size="1536x1024", quality="low", response_format="b64_json"
    )

    assert reply.data
    assert image_of(reply.data[0].b64_json).size == (1536, 1024)
    assert reply.usage
    assert reply.usage.total_tokens == artist.charges[0].total_tokens
    assert reply.usage.output_tokens == 196 * 1.5


def test_openai_sdk_gets_two_different_images(artist: Gateway) -> None:
    reply = client_of(artist).images.generate(model="gpt-image-2", prompt="A red fox", n=2, quality="high")

    assert reply.data
    first, second = (image.b64_json for image in reply.data)
    assert image_of(first).size == image_of(second).size == (1024, 1024)
    assert first != second
    assert reply.usage
    assert reply.usage.output_tokens == 2 * 7024


def test_openai_sdk_streams_previews_and_the_image(artist: Gateway) -> None:
    stream = client_of(artist).images.generate(
        model="gpt-image-2", prompt="A fox", stream=True, partial_images=2
    )
    events = list(stream)

    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + [
        "image_generation.completed"
    ]
    assert all(image_of(event.b64_json).size == (1024, 1024) for event in events)
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert last.usage.output_tokens == 1756 + 200 == artist.charges[0].output_tokens
    assert artist.charges[0].stream


def test_stream_bills_the_usage_of_its_events(gateway: Gateway) -> None:
    events = list(client_of(gateway).images.generate(model="gpt-image-2", prompt="A fox", stream=True, n=3))

    usages = [event.usage for event in events if event.type == "image_generation.completed"]
    assert len(usages) == 3
    assert sum(usage.total_tokens for usage in usages) == gateway.charges[0].total_tokens


def test_ignored_stream_is_plain_json(image: bytes) -> None:
    with Gateway(image=image, stream="ignored") as gateway:
        reply = post_to(gateway, stream=True)

    assert reply.headers["Content-Type"].startswith("application/json")
    assert len(reply.json()["data"]) == 1


@pytest.mark.parametrize(("output_format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_image_has_the_requested_format(artist: Gateway, output_format: str, kind: str) -> None:
    reply = post_to(artist, output_format=output_format).json()

    assert image_of(reply["data"][0]["b64_json"]).format == kind
    assert reply["output_format"] == output_format


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_transparent_background_is_transparent(output_format: str) -> None:
    image = Image.open(
        io.BytesIO(draw_poster("Koi", 1024, 1024, output_format=output_format, transparent=True))
    )

    alpha = image.getchannel("A").getextrema()
    assert alpha == (0, 255)


def test_same_prompt_gives_the_same_bytes() -> None:
    assert draw_poster("海上生明月，天涯共此时", 1024, 1536) == draw_poster(
        "海上生明月，天涯共此时", 1024, 1536
    )


def test_other_prompts_give_other_images() -> None:
    assert draw_poster("a fox", 1024, 1024) != draw_poster("a cat", 1024, 1024)


def test_directive_is_not_drawn(artist: Gateway) -> None:
    with_directive = post_to(artist, "A red fox [sandbox: delay=0.01]").json()
    without = post_to(artist, "A red fox").json()

    assert with_directive["data"][0]["b64_json"] == without["data"][0]["b64_json"]


@pytest.mark.parametrize(
    "prompt",
    [
        "x" * 32_000,
        "word " * 6000,
        "山" * 9000,
        "🦊",
        "?",
        "\n\t",
        "a\u0301 \u202e \x07",
        "Supercali" * 30,
        "，。",
    ],
)
@pytest.mark.parametrize("size", [(512, 512), (768, 256), (256, 768)])
def test_any_prompt_can_be_drawn(prompt: str, size: tuple[int, int]) -> None:
    assert Image.open(io.BytesIO(draw_poster(prompt, *size))).size == size


def test_chinese_is_drawn_with_real_characters() -> None:
    from airflow_provider_jojokey.sandbox.typography import font

    assert font("serif", 40).getmask("山").getbbox() != font("serif", 40).getmask("\u0378").getbbox()


def test_drawing_is_fast() -> None:
    draw_poster("warm up", 1024, 1024)
    started = time.process_time()
    for number in range(4):
        draw_poster(f"poster {number}, in four colours", 1024, 1024)
    # Four times the target, for slow or busy machines.
    assert (time.process_time() - started) / 4 < 0.6


def test_load_tests_can_skip_the_drawing(gateway: Gateway, image: bytes) -> None:
    reply = post_to(gateway, size="3840x2160").json()

    assert base64.b64decode(reply["data"][0]["b64_json"]) == image
