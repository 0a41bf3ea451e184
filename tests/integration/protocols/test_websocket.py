"""What real peers said on a WebSocket is read from the bytes between them."""

import random
import threading

import pytest
from websockets.sync.client import connect
from websockets.sync.server import serve

from sidestep.protocols.decoding import Bounds
from sidestep.protocols.websocket import BINARY, CLOSE, PING, PONG, TEXT, Reader, negotiated
from tests.harness.recording_relay import RecordingRelay

NUMBERS = " ".join(map(str, range(20_000)))
MESSAGES = ["hello", "x" * 3000, b"\0\1\2", NUMBERS, "", random.Random(3).randbytes(70_000)]


def said(recording, *, by_client):
    """Head and the rest of what one end said."""
    whole = b"".join(data for _, from_client, data in recording.events if from_client is by_client)
    head, _, rest = whole.partition(b"\r\n\r\n")
    return head, rest


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_messages_of_both_ends(compression):
    def echo(socket):
        for message in socket:
            socket.send(message)

    with serve(echo, "127.0.0.1", 0, compression=compression) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        with RecordingRelay(server.socket.getsockname()[1]) as relay:
            with connect(f"ws://127.0.0.1:{relay.port}/", compression=compression, max_size=None) as client:
                for message in MESSAGES:
                    client.send(message)
                    assert client.recv() == message
                client.send(iter(["in ", "pieces"]))
                assert client.recv() == "in pieces"
                assert client.ping(b"here?").wait(30)
            (recording,) = relay.finished(1)
        server.shutdown()
        serving.join(30)
    answer, _ = said(recording, by_client=False)
    fields = [line.partition(b":")[::2] for line in answer.split(b"\r\n")[1:]]
    agreed = negotiated(value for name, value in fields if name.lower() == b"sec-websocket-extensions")
    assert (agreed is not None) is (compression is not None)
    expected = [each.encode() if isinstance(each, str) else each for each in [*MESSAGES, "in pieces"]]
    for by_client in (True, False):
        _, stream = said(recording, by_client=by_client)
        reader = Reader(from_client=by_client, bounds=Bounds(1 << 20), deflate=agreed)
        found = [message for at in range(0, len(stream), 999) for message in reader.feed(stream[at : at + 999])]
        assert reader.reason is None
        assert [message.data for message in found if message.kind in (TEXT, BINARY)] == expected
        assert [message.reason for message in found] == [None] * len(found)
        assert [message.kind for message in found][-2:] == [PING if by_client else PONG, CLOSE]
        assert found[-1].end == len(stream)
