"""Answers of servers that do not keep to HTTP/2."""

import asyncio

import h2.config
import h2.connection
import h2.events
import pytest

from sidestep.laptop.replay.message import Outgoing, ReplayError
from sidestep.laptop.replay.sender import Sender
from sidestep.laptop.replay.target import parse_target

REQUEST = Outgoing(b"GET", b"/", b"a.test", [], b"", [], is_h2=True)


async def answer(reader, writer, status):
    """Serve one connection; each request gets this status."""
    config = h2.config.H2Configuration(
        client_side=False, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
    )
    http = h2.connection.H2Connection(config)
    http.initiate_connection()
    try:
        while data := await reader.read(65536):
            for event in http.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    http.send_headers(event.stream_id, [(b":status", status)], end_stream=True)
            writer.write(http.data_to_send())
            await writer.drain()
    except OSError:
        pass  # the client has gone
    finally:
        writer.close()


def sent(status):
    """What comes of a request to a server that answers with this status."""

    async def run():
        server = await asyncio.start_server(lambda reader, writer: answer(reader, writer, status), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        sender = Sender(parse_target(f"http://127.0.0.1:{port}", ca=None, insecure=False), timeout=60.0)
        try:
            return await sender.send(REQUEST)
        finally:
            await sender.aclose()
            server.close()

    return asyncio.run(run())


def test_a_status_is_taken():
    assert sent(b"204").status == 204


@pytest.mark.parametrize("status", [b"abc", b"2 0", b"20", b"-20", b"\xb2\xb3\xb9", b"99999"])
def test_a_status_that_is_no_number_is_no_answer(status):
    with pytest.raises(ReplayError, match="status"):
        sent(status)
