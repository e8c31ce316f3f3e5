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


FORMATS = """async (language) => {
    const format = await import("./format.js");
    const { cost } = await import("./money.js");
    document.documentElement.lang = language;
    const hour = new Date(Date.now() - 3_600_000).toISOString();
    const texts = [
        format.relativeTime(hour), format.day("2026-12-01"), format.tokens(1536), format.compact(206_700),
        format.fileSize(1_234_567), format.seconds(9.7),
        cost({ amounts: [{ amount: "1234.5", currency: "EUR", approximate: false }], unknown: 0 }),
    ];
    document.documentElement.lang = "en";
    return texts;
}"""


def test_dates_and_numbers_are_in_the_language_of_texts(scripts: Page) -> None:
    english = scripts.evaluate(FORMATS, "en")
    assert english == ["1 hour ago", "1 Dec", "1,536 tokens", "207k", "1.2 MB", "9.7s", "EUR\xa01,234.50"]
    for untranslated in ("de", "ar", "th", "zh-TW", "pt"):
        assert scripts.evaluate(FORMATS, untranslated) == english
    assert scripts.evaluate(FORMATS, "zh-CN")[:3] == ["1小时前", "12月1日", "1,536 token"]
