"""tshark reads synthesised captures of real conversations without a complaint, and our reader reads its files."""

import json
import subprocess
import sys
import threading

import pytest
from websockets.sync.client import connect
from websockets.sync.server import serve

from sidestep.protocols import pcapng
from sidestep.protocols.pcapng_reader import Packet, Reader
from sidestep.protocols.tcp_synthesis import Conversation, Endpoint
from tests.harness import tshark
from tests.harness.http2 import any_app
from tests.harness.peers import Server
from tests.harness.processes import Process
from tests.harness.recording_relay import RecordingRelay
from tests.harness.waiting import until


def capture(recordings, *, client="10.1.0.9", server="10.1.0.7", port=8080, segment_size=1400):
    """A pcapng file of recorded connections, between other addresses."""
    blocks = [pcapng.section(application="Sidestep"), pcapng.interface("shop/orders-1")]
    for number, recording in enumerate(recordings):
        conversation = Conversation(
            Endpoint(client, 50000 + number), Endpoint(server, port), segment_size=segment_size,
            client_number=4_294_967_000, server_number=1000,
        )  # fmt: skip
        at = recording.events[0][0]
        packets = [(at, packet) for packet in conversation.opening()]
        for at, from_client, data in recording.events:
            made = (
                conversation.data(data, from_client=from_client)
                if data
                else conversation.finish(from_client=from_client)
            )
            packets += [(at, packet) for packet in made]
        blocks += [pcapng.packet(0, at, packet) for at, packet in packets]
    return b"".join(blocks)


def one_file(folder, recordings, **options):
    file = capture(recordings, **options)
    (folder / "capture.pcapng").write_bytes(file)
    return file


@pytest.fixture
def app():
    with Server(any_app) as server, RecordingRelay(server.port) as relay:
        yield relay


def run(*command, given=b""):
    subprocess.run([str(word) for word in command], input=given, capture_output=True, timeout=60, check=True)


@pytest.mark.parametrize(
    ("segment_size", "client", "server"),
    [(64, "fd00::9", "fd00::7"), (1400, "10.1.0.9", "10.1.0.7"), (60000, "10.1.0.9", "10.1.0.7")],
)
def test_http1(app, tmp_path, segment_size, client, server):
    base = f"http://127.0.0.1:{app.port}"
    run("curl", "-s", f"{base}/", f"{base}/bytes/70000", f"{base}/echo")
    run("curl", "-s", "-T", "-", "-X", "POST", f"{base}/digest", given=b"body " * 9000)
    file = one_file(tmp_path, app.finished(2), client=client, server=server, segment_size=segment_size)
    assert tshark.complaints(file) == []
    fields = ["http.request.method", "http.request.uri", "http.response.code", "http.file_data"]
    rows = tshark.rows(file, fields, only="http")
    assert [(row["http.request.method"], row["http.request.uri"]) for row in rows if row["http.request.method"]] == [
        ("GET", "/"), ("GET", "/bytes/70000"), ("GET", "/echo"), ("POST", "/digest"),
    ]  # fmt: skip
    statuses = [row["http.response.code"] for row in rows if row["http.response.code"]]
    assert statuses == ["200", "200", "200", "100", "200"]
    lengths = tshark.rows(file, ["http.content_length"], only="http.response")
    assert "70000" in [row["http.content_length"] for row in lengths]


def test_http2_of_curl_and_nghttp(app, tmp_path):
    base = f"http://127.0.0.1:{app.port}"
    run("nghttp", "-n", f"{base}/", f"{base}/bytes/70000", f"{base}/echo")
    run("curl", "-s", "--http2-prior-knowledge", "-d", "x" * 30000, f"{base}/digest")
    run("h2load", "-n", "20", "-c", "1", "-m", "10", f"{base}/bytes/3000")
    file = one_file(tmp_path, app.finished(3))
    options = ("-d", "tcp.port==8080,http2")
    assert tshark.complaints(file, *options) == []
    rows = tshark.rows(file, ["http2.headers.path"], only="http2.headers.path", options=options)
    paths = [path for row in rows for path in row["http2.headers.path"].split(",")]
    assert sorted(set(paths)) == ["/", "/bytes/3000", "/bytes/70000", "/digest", "/echo"]
    assert paths.count("/bytes/3000") == 20
    statuses = tshark.rows(file, ["http2.headers.status"], only="http2.headers.status", options=options)
    assert [code for row in statuses for code in row["http2.headers.status"].split(",")] == ["200"] * 24


def test_grpc(tmp_path):
    peer = (sys.executable, "-m", "tests.harness.grpc_peer")
    command = (*peer, "serve", "orders", "127.0.0.1:0")
    with Process(command, log=tmp_path / "log", stdout=tmp_path / "port") as server:
        port = int(until(lambda: server.output().strip(), within=30, what=server.text))
        with RecordingRelay(port) as relay:
            calls = [
                {"method": "Get", "messages": ["first order"]},
                {"method": "List", "messages": ["3"]},
                {"method": "Chat", "messages": ["a" * 40000, "b"]},
                {"method": "Fail"},
            ]
            run(*peer, "call", f"127.0.0.1:{relay.port}", given=json.dumps(calls).encode())
            file = one_file(tmp_path, relay.finished(1))
    # The messages of this service are text, which tshark takes for protobuf or JSON.
    options = ("-d", "tcp.port==8080,http2", "--disable-protocol", "protobuf", "--disable-protocol", "json")
    # One of its trailers is binary: a NUL in a text field.
    assert {row["_ws.expert.message"] for row in tshark.complaints(file, *options)} <= {"Trailing stray characters"}
    rows = tshark.rows(file, ["http2.headers.path"], only="http2.headers.path", options=options)
    assert [row["http2.headers.path"].rpartition("/")[2] for row in rows] == ["Get", "List", "Chat", "Fail"]
    messages = tshark.rows(file, ["grpc.message_length"], only="grpc", options=options)
    lengths = [length for row in messages for length in row["grpc.message_length"].split(",") if length]
    assert "11" in lengths
    assert lengths.count("40000") == 1
    names = tshark.rows(file, ["http2.header.name"], only="http2.header.name", options=options)
    assert sum(row["http2.header.name"].split(",").count("grpc-status") for row in names) == 4


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_websocket(tmp_path, compression):
    def echo(socket):
        for message in socket:
            socket.send(message)

    with serve(echo, "127.0.0.1", 0, compression=compression) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        with RecordingRelay(server.socket.getsockname()[1]) as relay:
            with connect(f"ws://127.0.0.1:{relay.port}/feed", compression=compression) as client:
                for message in ("hello", "x" * 3000, b"\0\1\2"):
                    client.send(message)
                    assert client.recv() == message
            file = one_file(tmp_path, relay.finished(1))
        server.shutdown()
        serving.join(30)
    assert tshark.complaints(file) == []
    rows = tshark.rows(file, ["websocket.opcode", "websocket.payload_length"], only="websocket")
    opcodes = [code for row in rows for code in row["websocket.opcode"].split(",")]
    assert opcodes == ["1", "1", "1", "1", "2", "2", "8", "8"]
    if compression is None:
        texts = tshark.packets(file, only="websocket")
        assert "hello" in json.dumps(texts)


def test_a_loss_is_shown_as_one_and_counted(tmp_path):
    conversation = Conversation(Endpoint("10.1.0.9", 50000), Endpoint("10.1.0.7", 8080))
    packets = conversation.opening() + conversation.data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", from_client=True)
    packets += conversation.data(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", from_client=False)
    conversation.lost(8000, from_client=False)
    file = (
        pcapng.section(application="Sidestep")
        + pcapng.interface("shop/orders-1", description="port 8080")
        + b"".join(pcapng.packet(0, 10**18, packet, comments=("TLS 1.3",)) for packet in packets)
        + pcapng.packet(0, 10**18, conversation.data(b"x" * 1000, from_client=False)[0], dropped=6)
        + pcapng.statistics(0, 10**18, received=len(packets) + 7, dropped=6)
    )
    lost = tshark.rows(file, ["tcp.seq_raw"], only="tcp.analysis.lost_segment", options=tshark.STRICT)
    assert len(lost) == 1
    comments = tshark.rows(file, ["frame.comment", "frame.interface_name"], only="http.request")
    assert comments == [{"frame.comment": "TLS 1.3", "frame.interface_name": "shop/orders-1"}]
    (tmp_path / "lost.pcapng").write_bytes(file)
    told = subprocess.run(["capinfos", "lost.pcapng"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "Capture application: Sidestep" in told
    assert "Description = port 8080" in told
    assert "Number of packets = 8" in told


def read(file):
    reader = Reader()
    found = reader.feed(file)
    reader.finish()
    return found


def test_what_tshark_and_editcap_write_is_read(app, tmp_path):
    run("curl", "-s", f"http://127.0.0.1:{app.port}/")
    file = one_file(tmp_path, app.finished(1))
    ours = [packet for packet in read(file) if isinstance(packet, Packet)]
    by_tshark = tshark.tshark("-r", "-", "-w", "-", given=file)
    run("editcap", "-F", "pcapng", tmp_path / "capture.pcapng", tmp_path / "editcap.pcapng")
    for other in (by_tshark, (tmp_path / "editcap.pcapng").read_bytes()):
        theirs = [packet for packet in read(other) if isinstance(packet, Packet)]
        assert [(packet.timestamp, packet.data) for packet in theirs] == [
            (packet.timestamp, packet.data) for packet in ours
        ]
        assert theirs[0].interface.name == "shop/orders-1"
