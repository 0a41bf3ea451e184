"""What the live page does with flows: a wiretap's are saved and sent again with the bodies that were copied."""

from __future__ import annotations

import asyncio
import contextlib
import json

import aiohttp
import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.cli.live_page import LivePage, PageSettings
from sidestep.laptop.copied_requests import CopiedRequest
from sidestep.laptop.page import flow_ring
from sidestep.tunnel.messages import Answer, Answered, SessionSpec
from tests.unit.cli.test_saved_requests import COPY, request

ANSWER = Answer(200, "app", sent=3, received=2, head="Content-Type: text/plain")
SPEC = SessionSpec(namespace="shop", workload="orders", port="80", kind="wiretap")


class Nobody:
    """The observer that prints: it prints nothing."""

    def event(self, event):
        pass


@contextlib.asynccontextmanager
async def wiretap(tmp_path, *copies, answer=ANSWER):
    """The page of a wiretap that has shown these requests; returns what posts to it, with the ids of all of them."""
    page = LivePage("orders", PageSettings(), backend=tmp_path / "nobody.sock", namespace="shop")
    await page.begin()
    try:
        async with time_limit(30), aiohttp.ClientSession() as client:
            observer = page.observer(SPEC, Nobody())
            for number, copy in enumerate(copies, start=1):
                told = request(number=number, method=copy.method.decode(), path=copy.target.decode())
                observer.event(told)
                observer.event(Answered(pod=told.pod, port=80, number=number, answer=answer))
                page.take(copy)
            origin = page.address[: page.address.index("/", 8)]

            async def post(path, **value):
                chosen = {"ids": list(range(1, len(copies) + 1)), **value}
                async with client.post(page.address + path, json=chosen, headers={"Origin": origin}) as response:
                    assert response.status == 200, await response.text()
                    return json.loads(await response.read())

            yield post
    finally:
        await page.aclose()


@contextlib.asynccontextmanager
async def server():
    """Answers with 200 and no body; returns its address, and what it is sent: heads with bodies in chunks."""
    got = []

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = b""
                if b"transfer-encoding: chunked" in head.lower():
                    while not (body.endswith(b"\r\n\r\n") and b"\r\n0\r\n" in b"\r\n" + body):
                        body += await reader.readline()
                elif b"content-length: " in head.lower():
                    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                    body = await reader.readexactly(size)
                got.append((head, body))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")
                await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", got
    finally:
        listener.close()


def copied(method=b"POST", target=b"/x", *, body=b"abc", trailers=(), is_cut=False):
    return CopiedRequest(COPY.opening, method, target, COPY.fields, bytearray(body), list(trailers), is_cut)


def test_saving_keeps_the_copied_body_and_its_trailers_and_redacts_as_the_command_does(tmp_path):
    async def run():
        async with wiretap(tmp_path, copied(trailers=COPY.trailers), copied(target=b"/y", is_cut=True)) as post:
            return (await post("har"))["log"]["entries"]

    whole, cut = (each["request"] for each in asyncio.run(run()))
    assert whole["postData"] == {"mimeType": "text/plain", "text": "abc"}
    assert whole["bodySize"] == 3
    assert whole["_trailers"] == [{"name": "x-sum", "value": "1"}, {"name": "cookie", "value": "[redacted]"}]
    assert {"name": "authorization", "value": "[redacted]"} in whole["headers"]
    assert cut["postData"]["_truncated"] is True


def test_a_replay_sends_the_copied_body_and_its_trailers(tmp_path):
    async def run():
        async with (
            server() as (address, got),
            wiretap(tmp_path, copied(), copied(target=b"/y", trailers=COPY.trailers)) as post,
        ):
            return await post("replay", to=address), got

    told, got = asyncio.run(run())
    assert told["text"] == "0 of 2 answers differ."
    assert [head.split(b"\r\n")[0] for head, _ in got] == [b"POST /x HTTP/1.1", b"POST /y HTTP/1.1"]
    assert told["lines"] == ["Sent without fields whose values were redacted: authorization."]
    assert got[0][1] == b"abc"
    assert got[1][1].endswith(b"abc\r\n0\r\nx-sum: 1\r\n\r\n")


@pytest.mark.parametrize(("most", "is_cut"), [(flow_ring.BODY, True), (2, False)], ids=["by the copy", "by the page"])
def test_a_body_that_was_cut_is_not_sent_again(tmp_path, monkeypatch, most, is_cut):
    monkeypatch.setattr(flow_ring, "BODY", most)

    async def run():
        async with server() as (address, got), wiretap(tmp_path, copied(is_cut=is_cut)) as post:
            return await post("replay", to=address), got

    told, got = asyncio.run(run())
    assert got == []
    assert told["lines"] == ["POST http://a.test/x: not sent: its body was not recorded whole"]
