"""Entries of HTTP Archives from what sessions are told of requests (`tunnel.messages`)."""

from __future__ import annotations

import datetime as dt
import http
import re
from typing import Final
from urllib.parse import parse_qsl, quote

import msgspec

from sidestep.cli.request_text import answer_fields
from sidestep.laptop.recorded_body import Body
from sidestep.protocols import har
from sidestep.tunnel.messages import Answer, Request

_VERSIONS: Final = {"h2": "HTTP/2", "http/1.0": "HTTP/1.0"}
_URL_SAFE: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"<>\\^`{|}')
"""Characters of a target that a URL has, `%` among them: what is encoded stays so."""
_AUTHORITY: Final = re.compile(r"[A-Za-z0-9._~-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_NOWHERE: Final = "unknown.invalid"
"""Stands for an authority that is missing or that a URL cannot have (RFC 6761, section 6.4)."""
_MOST_SECONDS: Final = 253402300799.0
"""The end of the year 9999."""


def entry_of(request: Request, body: Body | None = None) -> har.Entry:
    """Return the entry of a request. Without `body` that was not recorded."""
    answer = request.answer
    version = _VERSIONS.get(request.protocol, "HTTP/1.1")
    url, target = _url(request)
    _, _, query = url.partition("?")
    headers = [har.Field(name, value) for name, value in request.fields]
    took = 0.0 if answer is None else answer.seconds * 1000
    return har.Entry(
        request=har.Request(
            method=request.method,
            url=url,
            http_version=version,
            headers=headers,
            query_string=[har.Field(name, value) for name, value in parse_qsl(query, keep_blank_values=True)],
            post_data=_post_data(request, body),
            body_size=_size(answer, body),
            trailers=[har.Field(name, value) for name, value in body.trailers] if body is not None else [],
        ),
        response=_response(answer, version),
        started_date_time=_time(request.time),
        time=took,
        timings=har.Timings(wait=took),
        facts=har.Facts(
            by="" if answer is None else answer.by,
            handler="" if answer is None else answer.handler,
            pod=request.pod,
            port=request.port,
            client=request.client,
            trace=request.trace,
            target=target,
            whole=answer is None or answer.whole,
            tls=None if request.tls_facts is None else har.Tls(*msgspec.structs.astuple(request.tls_facts)),
        ),
    )


def _url(request: Request) -> tuple[str, str]:
    """Return the URL, and the target where the URL does not say it."""
    target = request.path
    scheme = "https" if request.tls else "http"
    if re.match(r"https?://", target):
        scheme, _, rest = target.partition("://")
        authority, slash, path = rest.partition("/")
        path = slash + path
    else:
        authority, path = request.authority, target
    if _AUTHORITY.fullmatch(authority) is None:
        authority = _NOWHERE
    told = quote(path, safe=_URL_SAFE) if path.startswith("/") else "/"
    return f"{scheme}://{authority}{told}", "" if told == target else target


def _size(answer: Answer | None, body: Body | None) -> int:
    if body is not None and not body.is_cut:
        return len(body.data)
    return -1 if answer is None else answer.sent


def _post_data(request: Request, body: Body | None) -> har.PostData | msgspec.UnsetType:
    if body is None or not (body.data or body.is_cut):
        return msgspec.UNSET
    text, encoding = har.body_text(body.data)
    kind = next((value for name, value in request.fields if name == "content-type"), "")
    return har.PostData(kind, text, encoding or msgspec.UNSET, body.is_cut or msgspec.UNSET)


def _response(answer: Answer | None, version: str) -> har.Response:
    if answer is None or not answer.status:
        return har.Response(http_version=version)
    fields = answer_fields(answer)
    known = dict(fields)
    try:
        phrase = http.HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = ""
    return har.Response(
        status=answer.status,
        status_text=phrase,
        http_version=version,
        headers=[har.Field(name, value) for name, value in fields],
        content=har.Content(
            answer.received, known.get("content-type", "x-unknown"), comment="the body was not recorded"
        ),
        redirect_url=known.get("location", ""),
        body_size=answer.received,
    )


def _time(seconds: float) -> str:
    moment = dt.datetime.fromtimestamp(min(max(seconds, 0.0), _MOST_SECONDS), tz=dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
