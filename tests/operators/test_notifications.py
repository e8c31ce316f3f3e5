"""Mail and Slack messages about images, received by real SMTP and HTTP servers."""

from __future__ import annotations

import email
import email.policy
import json
import socket
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from airflow_provider_jojokey.notifications.message import Message, slack_escape
from airflow_provider_jojokey.results import Result

HOSTILE = (
    "a <b>fox</b> & <!channel> <https://evil.example|click> *bold* {{ 7 * 7 }} <img src=x onerror=alert(1)>"
)
DAG_FILE = f"""
from airflow.sdk import DAG
from airflow_provider_jojokey.notifications.slack import ImagesSlackWebhookNotifier
from airflow_provider_jojokey.notifications.smtp import ImagesSmtpNotifier
from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator

mail = ImagesSmtpNotifier(to="design@example.com", from_email="airflow@example.com")
chat = ImagesSlackWebhookNotifier()
with DAG("notified", schedule=None, user_defined_macros={{"hostile": {HOSTILE!r}}}):
    GenerateImageOperator(
        task_id="image", prompt="{{{{ hostile }}}}", s3_bucket="posters", s3_key="fox.png", n=2,
        size="1024x640", on_success_callback=[mail, chat],
    )
    GenerateImageOperator(
        task_id="poor", prompt="[sandbox: wallet_empty] x", s3_bucket="posters", s3_key="x.png",
        on_failure_callback=[mail, chat],
    )
"""


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[email.message.EmailMessage]]:
    from aiosmtpd.controller import Controller

    received: list[email.message.EmailMessage] = []

    class Recorder:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            received.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
            return "250 OK"

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(Recorder(), hostname="127.0.0.1", port=port)
    controller.start()
    extra = {"disable_ssl": True, "disable_tls": True}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": port, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(connection))
    yield received
    controller.stop()


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    received: list[dict[str, Any]] = []

    class Slack(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slack)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}/services"
    connection = {"conn_type": "slackwebhook", "host": host, "password": "T0/B0/secret"}
    monkeypatch.setenv("AIRFLOW_CONN_SLACK_DEFAULT", json.dumps(connection))
    yield received
    server.shutdown()
    server.server_close()


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_mail_and_slack_report_success_and_failure(
    airflow: Any,
    gateway: Any,
    store: Any,
    mailbox: list[Any],
    channel: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/team")
    run = airflow.run_file("notified", airflow.write("notified.py", DAG_FILE))

    assert run.states == {("image", -1): "success", ("poor", -1): "failed"}
    mails = {str(mail["Subject"]): mail for mail in mailbox}
    assert set(mails) == {"notified.image: 2 images", "notified.poor failed: JojoKeyQuotaError"}
    mail = mails["notified.image: 2 images"]
    page = Tags(mail.get_body(("html",)).get_content())
    assert HOSTILE in page.text  # escaped: neither a tag nor a template
    images = [attributes for tag, attributes in page.found if tag == "img"]
    assert [image["alt"] for image in images] == ["fox-0.png", "fox-1.png"]
    assert all(
        str(image["src"]).startswith("https://airflow.example.com/team/jojokey/thumbnails/")
        for image in images
    )
    assert {tag for tag, _ in page.found} == {"h3", "p", "a", "img", "br", "table", "tr", "th", "td"}
    assert f"{gateway.charges[0].total_tokens:,}" in page.text
    poor = Tags(mails["notified.poor failed: JojoKeyQuotaError"].get_body(("html",)).get_content())
    assert "Nothing was billed" in poor.text

    messages = {message["text"].replace("\u200b", ""): json.dumps(message["blocks"]) for message in channel}
    assert set(messages) == set(mails)
    text = messages["notified.image: 2 images"]
    assert "<!channel>" not in text
    assert "<https://evil" not in text
    assert "https://airflow.example.com/team/jojokey/images/notified/" in text
    assert "49" not in text.replace(run.run_id, "")[: text.find("Model")].partition("Prompt")[2]
    assert "X-Amz" not in text + str(mail)
    assert "sk-" not in text + str(mail)


def test_slack_markup_is_escaped() -> None:
    escaped = slack_escape("<!here> *b* _i_ ~s~ `c` & <@U1> https://x.example @channel")
    assert "<" not in escaped
    assert ">" not in escaped
    assert "://" not in escaped
    assert all(f"\u200b{mark}" in escaped for mark in "*_~`")
    assert "@channel" not in escaped


def test_large_result_stays_within_slack_limits() -> None:
    value = {
        "version": 1,
        "state": "complete",
        "count": 5000,
        "prompt": "&" * 2000,
        "message": "<" * 1000,
        "manifest": "s3://b/" + "*" * 1000,
        "usage": {"total_tokens": 1_234_567},
        "images": [
            {
                "bucket": "b",
                "key": f"{n}{'<' * 900}.png",
                "content_type": "image/png",
                "width": 1,
                "height": 1,
                "bytes": 1,
                "sha256": "0" * 64,
            }
            for n in range(12)
        ],
    }
    message = Message("title", Result.from_xcom(value), "http://x", ("d", "r", "t", 3))
    blocks = message.slack_blocks()
    assert len(blocks) <= 50
    assert max(len(block["text"]["text"]) for block in blocks) <= 3000
    assert "and 4,990 more" in message.text()
    assert "1,234,567" in message.text()


@pytest.mark.parametrize(
    ("billed", "tokens"), [("no", "Tokens billed: 0"), ("unknown", "Tokens billed: unknown")]
)
def test_message_says_if_tokens_are_unknown(billed: str, tokens: str) -> None:
    result = Result("failed", usage={"total_tokens": 0}, billed=billed)

    assert tokens in Message("title", result, "http://x", ("d", "r", "t", -1)).text().splitlines()


def test_message_of_a_batch_says_whose_prompt_it_shows() -> None:
    def lines(**facts: Any) -> list[str]:
        result = Result("complete", prompt="a fox", **facts)
        return Message("title", result, "http://x", ("d", "r", "t", -1)).text().splitlines()

    assert "Prompt: a fox" in lines()
    assert "Prompt of the first item: a fox" in lines(batch=True, count=7)


def test_task_without_result_still_has_a_message() -> None:
    class TaskInstance:
        """A task that has pushed no XCom, which doesn't mean that there are no images."""

        dag_id, run_id, task_id, map_index = "d", "r", "t", -1

        def xcom_pull(self, **_: Any) -> None:
            return None

    message = Message.of({"ti": TaskInstance()})
    assert message.text().splitlines() == [
        "d.t reported no images",
        "/dags/d/runs/r/tasks/t/plugin/jojokey-images",
    ]
    assert "<img" not in message.html()
