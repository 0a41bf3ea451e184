"""Connections are put together again from what dumpcap captured of real ones."""

import contextlib
import subprocess

import pytest

from sidestep.protocols.pcapng_reader import Packet, Reader, Statistics
from sidestep.protocols.tcp_segments import Segment, find
from sidestep.protocols.tcp_streams import Data, Finished, Lost, Over, Streams
from tests.harness.http2 import any_app
from tests.harness.peers import Server
from tests.harness.processes import Process
from tests.harness.recording_relay import RecordingRelay
from tests.harness.waiting import until


@contextlib.contextmanager
def captured(device, port, file, *options):
    """Capture the TCP traffic of a port until left."""
    command = ("dumpcap", "-i", device, "-f", f"tcp port {port}", "-w", file, *options)
    with Process(command, log=file.with_suffix(".log")) as dumpcap:
        until(lambda: "File:" in dumpcap.text(), within=30, what=dumpcap.text)
        yield


def get(port, path):
    subprocess.run(["curl", "-s", "-o", "/dev/null", f"http://127.0.0.1:{port}{path}"], timeout=60, check=True)


def read(file):
    """All packets and statistics, and what the streams in them said."""
    reader, streams = Reader(), Streams()
    found = reader.feed(file.read_bytes())
    reader.finish()
    events = []
    for packet in found:
        if isinstance(packet, Packet):
            segment = find(packet.interface.link_type, packet.data)
            assert isinstance(segment, Segment), segment
            events += streams.feed(segment)
    return found, events + streams.finish()


@pytest.mark.parametrize("device", ["lo", "any"])
def test_what_dumpcap_captured(device, tmp_path):
    file = tmp_path / "dumpcap.pcapng"
    with Server(any_app) as server, RecordingRelay(server.port) as relay, captured(device, relay.port, file):
        for path in ("/bytes/300000", "/", "/echo"):
            get(relay.port, path)
        recordings = relay.finished(3)

        def last_seen():
            # The kernel hands packets over in blocks: later ones push out those that are waited for.
            get(relay.port, "/later")
            return file.exists() and file.read_bytes().count(b"GET /later") > 1

        until(last_seen, within=30, every=0.2, what="the capture to hold what was said")
    found, events = read(file)
    packets = [packet for packet in found if isinstance(packet, Packet)]
    assert {packet.interface.name for packet in packets} == {device}
    (counts,) = [each for each in found if isinstance(each, Statistics)]
    assert counts.received >= len(packets)
    assert counts.dropped == 0
    for number, recording in enumerate(recordings):
        mine = [event for event in events if event.connection.number == number]
        assert mine[0].connection.client[1] == recording.client[1]
        for by_client in (True, False):
            expected = b"".join(data for _, from_client, data in recording.events if from_client is by_client)
            told = b"".join(event.data for event in mine if isinstance(event, Data) and event.from_client is by_client)
            assert told == expected
        assert not any(isinstance(event, Lost) for event in mine)
        assert {type(event) for event in mine} == {Data, Finished, Over}


def test_a_short_snap_length_leaves_losses(tmp_path):
    file = tmp_path / "short.pcapng"
    with Server(any_app) as server, captured("lo", server.port, file, "-s", "200"):

        def last_seen():
            get(server.port, "/bytes/5000")
            return file.exists() and file.stat().st_size > 8000

        until(last_seen, within=30, every=0.2, what="the capture to hold what was said")
    _, events = read(file)
    answer = [each for each in events if each.connection.number == 0 and isinstance(each, (Data, Lost))]
    answer = [each for each in answer if not each.from_client]
    assert any(isinstance(each, Lost) for each in answer)
    assert 5000 < sum(len(each.data) if isinstance(each, Data) else each.count for each in answer) < 6000
