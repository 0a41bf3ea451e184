"""What a mirror is told of a whole connection between real sockets, whatever carries its bytes."""

from __future__ import annotations

import contextlib
import socket

import pytest

from sidestep.engine.mirror.events import BODY, RESPONSE_BODY, WHOLE, ExchangeCut, RequestData, ResponseData
from sidestep.engine.mirror.producer import Mirror
from sidestep.proxy.io.stream import reset
from tests.unit.engine.mirror.recording import Recorder
from tests.unit.proxy.mirror.test_copy_connection import GET, OK, Scene


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        mirror, recorder = Mirror(), Recorder(BODY | RESPONSE_BODY)
        mirror.add(recorder, BODY | RESPONSE_BODY)
        yield Scene(stack, mirror=mirror), recorder


def said(recorder):
    return recorder.data(RequestData, WHOLE), recorder.data(ResponseData, WHOLE)


def test_both_directions_are_told_as_they_are(scene):
    shop, recorder = scene
    for _ in range(3):
        shop.client.send(GET)
        shop.received(shop.app, GET)
        shop.app.send(OK)
        shop.received(shop.client, OK)
    shop.client.send(b"no request at all\r\n\r\n")
    shop.received(shop.app, b"no request at all\r\n\r\n")
    shop.app.send(b"what?")
    shop.received(shop.client, b"what?")
    shop.client.shutdown(socket.SHUT_WR)
    shop.until(lambda: "RequestEnd" in recorder.kinds())
    shop.app.close()
    shop.until(lambda: "ConnectionEnd" in recorder.kinds())
    assert said(recorder) == (GET * 3 + b"no request at all\r\n\r\n", OK * 3 + b"what?")
    assert {"RequestEnd", "ResponseEnd"} < set(recorder.kinds(WHOLE))
    assert recorder.kinds()[0] == "ConnectionStart"


def test_what_a_slow_client_is_sent_is_told_once(scene):
    shop, recorder = scene
    size = 2_000_000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    shop.client.send(GET)
    shop.received(shop.app, GET)
    left, got = bytearray(answer), bytearray()

    def pump():
        with contextlib.suppress(BlockingIOError):
            del left[: shop.app.send(left)]
        with contextlib.suppress(BlockingIOError):
            got.extend(shop.client.recv(7000))
        return len(got) == len(answer)

    shop.until(pump)
    assert bytes(got) == answer
    shop.until(lambda: len(said(recorder)[1]) >= len(answer))
    assert said(recorder) == (GET, answer)


def test_a_client_that_resets_is_told(scene):
    shop, recorder = scene
    shop.client.send(b"some")
    shop.until(lambda: said(recorder)[0] == b"some")
    reset(shop.client)
    shop.until(lambda: ExchangeCut(WHOLE) in recorder.events or "ConnectionEnd" in recorder.kinds())
    assert said(recorder)[0] == b"some"
