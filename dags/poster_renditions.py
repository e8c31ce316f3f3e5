"""One paid picture in the sizes and formats that channels need.

The poster is generated and paid for once. A second task crops it around a focal point, adds a headline and a logo,
and stores a JPEG or WebP file for each channel. Later runs with the same prompt reuse the poster, so another crop or
headline costs nothing. The results appear in the gallery as derived from the poster.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator

BUCKET = "{{ var.value.get('posters_bucket', 'posters') }}"
FOLDER = "renditions/{{ run_id | replace(':', '-') }}"
CHANNELS = {
    "feed": (1080, 1080, "JPEG"),
    "story": (1080, 1920, "WEBP"),
    "banner": (1600, 400, "WEBP"),
    "newsletter": (600, 400, "JPEG"),
}
"""Width, height and format for each channel."""


def cropped(size: tuple[int, int], target: tuple[int, int], focus: tuple[float, float]) -> tuple[float, ...]:
    """Return the largest box of the target's proportions within an image, as near to the focal point as possible.

    :param focus: from 0, 0 (top left) to 1, 1 (bottom right)
    """
    scale = min(size[0] / target[0], size[1] / target[1])
    box = target[0] * scale, target[1] * scale
    left, top = (
        min(max(0.0, point * whole - part / 2), whole - part)
        for point, whole, part in zip(focus, size, box, strict=True)
    )
    return left, top, left + box[0], top + box[1]


def rendered(poster: Any, channel: str, params: dict[str, Any], logo: Any | None) -> bytes:
    """Return the poster as a channel needs it.

    :param poster: a Pillow image
    :param logo: a Pillow image for the lower right corner
    """
    import io

    from PIL import Image, ImageDraw, ImageFont

    width, height, kind = CHANNELS[channel]
    box = cropped(poster.size, (width, height), (params["focal_x"], params["focal_y"]))
    picture = poster.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    margin = min(width, height) // 20
    if headline := " ".join((params["headline"] or "").split()):  # Pillow can't measure several lines
        draw = ImageDraw.Draw(picture)
        font = ImageFont.load_default(size=min(width, height) // 12)
        while font.size > 8 and draw.textlength(headline, font) > width - 2 * margin:
            font = ImageFont.load_default(size=font.size * 0.9)
        draw.text(
            (margin, margin),
            headline,
            "white",
            font,
            stroke_width=int(font.size // 16),
            stroke_fill="black",
        )
    if logo is not None:
        small = logo.copy()
        small.thumbnail((width // 5, height // 5))
        picture.paste(small, (width - small.width - margin, height - small.height - margin), small)
    out = io.BytesIO()
    picture.save(out, kind, quality=88)
    return out.getvalue()


@task(retries=2)
def render(folder: str) -> list[str]:
    """Store a rendition for each channel and return their places."""
    import hashlib
    import io

    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from PIL import Image

    from airflow_provider_jojokey.results import XCOM_KEY, Result, StoredImage

    context = get_current_context()
    params, ti = dict(context["params"]), context["ti"]
    source = ti.xcom_pull(task_ids="poster")["images"][0]
    s3 = S3Hook()

    def load(bucket: str, key: str, mode: str) -> tuple[bytes, Any]:
        data = s3.get_conn().get_object(Bucket=bucket, Key=key)["Body"].read()
        with Image.open(io.BytesIO(data)) as image:
            return data, image.convert(mode)

    data, poster = load(source["bucket"], source["key"], "RGB")
    if hashlib.sha256(data).hexdigest() != source["sha256"]:
        raise ValueError(f"Another object is at {source['uri']}: the poster was overwritten.")
    logo = load(*S3Hook.parse_s3_url(params["logo"]), "RGBA")[1] if params["logo"] else None
    stored = []
    for channel in params["channels"]:
        width, height, kind = CHANNELS[channel]
        made = rendered(poster, channel, params, logo)
        key = f"{folder}/{channel}.{'jpg' if kind == 'JPEG' else 'webp'}"
        content_type = f"image/{kind.lower()}"
        s3.get_conn().put_object(Bucket=source["bucket"], Key=key, Body=made, ContentType=content_type)
        stored.append(
            StoredImage(
                bucket=source["bucket"], key=key, content_type=content_type, width=width, height=height,
                bytes=len(made), sha256=hashlib.sha256(made).hexdigest(),
            )
        )  # fmt: skip
    result = Result(
        state="complete",
        images=tuple(stored),
        count=len(stored),
        prompt=params["prompt"],
        derived_from=source["uri"],
        aws_conn_id=s3.aws_conn_id,
    )
    ti.xcom_push(key=XCOM_KEY, value=result.to_xcom())
    return [image.uri for image in stored]


with DAG(
    dag_id="poster_renditions",
    description="One paid picture in the sizes and formats that channels need.",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    doc_md=__doc__,
    tags=["jojokey", "poster", "renditions"],
    params={
        "prompt": Param(
            "A paper boat on a mountain lake, screen print, wide margins",
            type="string",
            title="Prompt",
            description="What the poster shows. At list prices, a new poster costs about USD 0.01. The same prompt "
            "again costs nothing.",
        ),
        "channels": Param(
            list(CHANNELS), type="array", items={"type": "string", "enum": list(CHANNELS)}, title="Channels",
            examples=list(CHANNELS), description="A file is made for each of them.",
        ),
        "focal_x": Param(0.5, type="number", minimum=0, maximum=1, title="Focal point, from left (0) to right (1)"),
        "focal_y": Param(0.5, type="number", minimum=0, maximum=1, title="Focal point, from top (0) to bottom (1)"),
        "headline": Param("", type=["string", "null"], title="Headline", description="Latin letters; empty for none."),
        "logo": Param(
            "", type=["string", "null"], pattern="^(s3://.+)?$", title="Logo",
            description="A PNG with transparency, such as s3://posters/logo.png; empty for none.",
        ),
    },
):  # fmt: skip
    poster = GenerateImageOperator(
        task_id="poster",
        prompt="{{ params.prompt }}",
        s3_bucket=BUCKET,
        # The same key for the same prompt: later runs find the poster that an earlier run paid for.
        s3_key="renditions/posters/{{ macros.uuid.uuid5(macros.uuid.NAMESPACE_URL, params.prompt) }}.{ext}",
        reuse="always",
        size="1536x1024",
        retries=3,
    )
    poster >> render(FOLDER)
