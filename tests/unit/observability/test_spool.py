"""A log neither waits for its reader nor fails with its stream."""

import json
import os
import threading
import time

from sidestep.observability import spool as module
from sidestep.observability.spool import QUEUE, Spool


def test_lines_come_out_in_order(tmp_path):
    path = tmp_path / "log"
    with open(path, "w") as stream:
        spool = Spool(stream.fileno())
        for number in range(1000):
            spool.write(f"{number}\n")
        spool.drain()
    assert path.read_text().split() == [str(number) for number in range(1000)]


def test_a_reader_that_stalls_costs_lines_not_time_and_is_told_how_many(monkeypatch):
    monkeypatch.setattr(module, "FAREWELL", 0.1)
    reader, writer = os.pipe()
    seen = []

    def read():
        with os.fdopen(reader) as lines:
            seen.extend(json.loads(line) for line in lines)

    with os.fdopen(writer, "w") as stream:
        spool = Spool(stream.fileno())
        began = time.monotonic()
        for number in range(3 * QUEUE):
            spool.write(json.dumps({"number": number, "filling": "x" * 100}) + "\n")
        spool.drain()
        assert time.monotonic() - began < 5
        thread = threading.Thread(target=read)
        thread.start()
        monkeypatch.setattr(module, "FAREWELL", 30.0)
        spool.drain()
    thread.join(30)
    dropped = sum(each["count"] for each in seen if each.get("event") == "log lines dropped")
    numbers = [each["number"] for each in seen if "number" in each]
    assert dropped > 0
    assert len(numbers) + dropped == 3 * QUEUE
    assert numbers == sorted(numbers)
    assert numbers[:QUEUE] == list(range(QUEUE))


def test_a_stream_that_refuses_is_written_to_again_later(tmp_path):
    path = tmp_path / "log"
    with open("/dev/full", "w") as stream, open(path, "w") as other:
        spool = Spool(stream.fileno())
        spool.write("lost\n")
        spool.drain()
        os.dup2(other.fileno(), stream.fileno())
        spool.write("kept ä \udcff\n")
        spool.drain()
    assert path.read_text() == "kept ä \\udcff\n"
