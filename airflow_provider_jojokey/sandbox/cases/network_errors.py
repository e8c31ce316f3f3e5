"""Responses of Cloudflare and of proxies, and connections that break."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from airflow_provider_jojokey.sandbox.bodies import HTML, Call, cloudflare_reply
from airflow_provider_jojokey.sandbox.cases.case import Case
from airflow_provider_jojokey.sandbox.wire import Reply


def _cloudflare_text(call: Call, error_code: int) -> Reply:
    directive = replace(call.directive, options={"body": "text", **call.directive.options})
    return cloudflare_reply(replace(call, directive=directive), error_code)


def _nginx(call: Call, *, status: int, title: str) -> Reply:
    page = (
        f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body>\r\n<center><h1>{status} {title}</h1>"
        "</center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    )
    return Reply(status, {"Server": "nginx", "Content-Type": "text/html"}, [page.encode()])


def _cloudflare(error_code: int, billed: bool, summary: str) -> Case:
    status = error_code if error_code < 1000 else 403
    respond = partial(cloudflare_reply, error_code=error_code)
    return Case(f"cloudflare_{error_code}", status, billed, "cloudflare", summary, respond)


def _redirect(call: Call, *, status: int) -> Reply:
    target = call.directive.text("to", f"{call.base_url}/sandbox/elsewhere")
    return Reply(
        status, {"Location": target, "Content-Type": HTML}, [b"<a href='" + target.encode() + b"'>moved</a>"]
    )


def _redirect_case(status: int) -> Case:
    respond = partial(_redirect, status=status)
    return Case(f"redirect_{status}", status, False, "network", "a redirect: to=ADDRESS", respond)


NETWORK_ERRORS = [
    _cloudflare(502, False, "Cloudflare received no valid response from the gateway"),
    Case("cloudflare_502_text", 502, False, "cloudflare", "the same as plain text: error code: 502",
         partial(_cloudflare_text, error_code=502)),
    _cloudflare(504, True, "Cloudflare's connection to the gateway timed out"),
    _cloudflare(520, True, "the response of the gateway was empty or invalid"),
    _cloudflare(521, False, "the gateway refused the connection"),
    _cloudflare(522, False, "the connection to the gateway timed out, possibly after it was opened"),
    _cloudflare(523, False, "the gateway cannot be reached"),
    _cloudflare(524, True, "Cloudflare timed out: the image is generated and charged anyway"),
    _cloudflare(525, False, "the TLS handshake with the gateway failed"),
    _cloudflare(526, False, "the gateway's certificate is invalid"),
    _cloudflare(1010, False, "Cloudflare blocks this kind of client"),
    _cloudflare(1020, False, "a firewall rule blocks this request"),
    Case("nginx_502", 502, True, "network", "a proxy's bare 502 page",
         partial(_nginx, status=502, title="Bad Gateway")),
    Case("nginx_504", 504, True, "network", "a proxy's bare 504 page",
         partial(_nginx, status=504, title="Gateway Time-out")),
    Case("reset", None, True, "network", "the connection is reset after the request was read",
         lambda call: Reply(None, end="rst")),
    Case("close", None, True, "network", "the connection is closed without a response",
         lambda call: Reply(None, end="fin")),
    Case("hang", None, True, "network", "no response is sent, until the client disconnects",
         lambda call: Reply(None, hang=True)),
    *[_redirect_case(status) for status in (301, 302, 307, 308)],
]  # fmt: skip
