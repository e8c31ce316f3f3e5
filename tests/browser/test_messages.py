"""Messages of the server, as the browser shows them."""

from __future__ import annotations

from playwright.sync_api import Page

from airflow_provider_jojokey.translatable import Translatable

RENDER = """async ([language, message]) => {
    const { said } = await import("./format.js");
    document.documentElement.lang = language;
    const text = said(message);
    document.documentElement.lang = "en";
    return text;
}"""


def test_message_is_shown_in_the_language_of_the_user(scripts: Page) -> None:
    why = Translatable("The object is larger than {limit} bytes.", limit=4_194_304)
    message = Translatable("The receipt could not be read. {why}", why=why)
    english, chinese, japanese = (
        scripts.evaluate(RENDER, [language, message.to_json()]) for language in ("en", "zh-CN", "ja")
    )
    assert english == japanese == str(message)
    assert chinese == "无法读取收据。对象大于 4,194,304 字节。"


def test_detail_of_another_program_is_not_shown(scripts: Page) -> None:
    assert scripts.evaluate(RENDER, ["en", {"detail": "Forbidden"}]) == ""
