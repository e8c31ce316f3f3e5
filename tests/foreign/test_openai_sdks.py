"""OpenAI's SDKs understand the responses of the sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_jojokey.sandbox import Gateway
from tests.support.programs import INSTALLED, output_of, program

PYTHON = """
import base64, hashlib, json, os, openai
client = openai.OpenAI(base_url=os.environ["URL"] + "/v1", api_key=os.environ["TOKEN"], max_retries=0)
found = {}
reply = client.images.generate(model="gpt-image-2", prompt="a fox", size="1024x1024", quality="low", n=2)
found["plain"] = [hashlib.sha256(base64.b64decode(image.b64_json)).hexdigest() for image in reply.data]
found["usage"] = reply.usage.total_tokens
events = list(client.images.generate(model="gpt-image-2", prompt="a fox", stream=True, partial_images=1))
found["events"] = [event.type for event in events]
found["stream"] = hashlib.sha256(base64.b64decode(events[-1].b64_json)).hexdigest()
found["errors"] = {}
for case in json.loads(os.environ["CASES"]):
    try:
        client.images.generate(model="gpt-image-2", prompt=f"a fox [sandbox: {case}]")
        found["errors"][case] = None
    except openai.APIStatusError as error:
        found["errors"][case] = [type(error).__name__, error.status_code, error.code]
found["models"] = [model.id for model in client.models.list()]
print(json.dumps(found))
"""
NODE = """
import crypto from "node:crypto";
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.URL + "/v1", apiKey: process.env.TOKEN, maxRetries: 0 });
const digest = (text) => crypto.createHash("sha256").update(Buffer.from(text, "base64")).digest("hex");
const found = { errors: {}, events: [] };
const reply = await client.images.generate(
  { model: "gpt-image-2", prompt: "a fox", size: "1024x1024", quality: "low", n: 2 });
found.plain = reply.data.map((image) => digest(image.b64_json));
found.usage = reply.usage.total_tokens;
for await (const event of await client.images.generate(
  { model: "gpt-image-2", prompt: "a fox", stream: true, partial_images: 1 })) {
  found.events.push(event.type);
  found.stream = digest(event.b64_json);
}
for (const name of JSON.parse(process.env.CASES)) {
  try {
    await client.images.generate({ model: "gpt-image-2", prompt: `a fox [sandbox: ${name}]` });
    found.errors[name] = null;
  } catch (error) {
    found.errors[name] = [error.constructor.name, error.status, error.code];
  }
}
found.models = [];
for await (const model of client.models.list()) found.models.push(model.id);
console.log(JSON.stringify(found));
"""
ERRORS = {
    "no_channel": ["InternalServerError", 503, "model_not_found"],
    "wallet_empty": ["PermissionDeniedError", 403, "insufficient_user_quota"],
    "invalid_token": ["AuthenticationError", 401, ""],
    "rate_limited": ["RateLimitError", 429, ""],
    "moderation_blocked": ["BadRequestError", 400, "moderation_blocked"],
}


def python_sdk(folder: Path, **env: str) -> Any:
    script = folder / "sdk.py"
    script.write_text(PYTHON)
    return output_of([program("openai/bin/python")], script, **env)


def node_sdk(folder: Path, **env: str) -> Any:
    program("node/node_modules/openai/package.json")
    script = INSTALLED / "node" / "sdk.mjs"  # next to node_modules, where Node looks for the package
    script.write_text(NODE)
    return output_of(["node"], script, **env)


@pytest.mark.parametrize("sdk", [python_sdk, node_sdk])
def test_official_sdk_reads_sandbox_responses(
    sdk: Callable[..., Any], behind: Gateway, png: bytes, tmp_path: Path
) -> None:
    import hashlib

    digest = hashlib.sha256(png).hexdigest()
    found = sdk(tmp_path, URL=behind.url, TOKEN=behind.token, CASES=json.dumps(list(ERRORS)))

    assert found["plain"] == [digest, digest]
    assert found["usage"] == behind.charges[0].total_tokens
    assert found["events"] == ["image_generation.partial_image", "image_generation.completed"]
    assert found["stream"] == digest
    assert found["models"] == list(behind.models)
    for case, (kind, status, code) in ERRORS.items():
        assert found["errors"][case][:2] == [kind, status], case
        assert (found["errors"][case][2] or "") == code, case
