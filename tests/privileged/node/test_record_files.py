"""A full disk: what was written stays whole, what was not is counted, and the log goes on when there is room."""

from __future__ import annotations

import subprocess

import pytest

from sidestep.node.records import sinks
from sidestep.node.records.sinks import FileSink
from tests.harness.waiting import until

LINE = b"x" * 999 + b"\n"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "sidestep-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_whole_lines_and_is_left_alone_for_a_while(small_disk, monkeypatch):
    monkeypatch.setattr(sinks, "PAUSE", 0.1)
    (small_disk / "others").write_bytes(bytes(20_000))
    sink = FileSink(small_disk / "eve.json")
    written = sink.write([LINE] * 100)
    assert 20 <= written < 60
    assert sink.problem == "No space left on device"
    assert (small_disk / "eve.json").read_bytes() == LINE * written
    assert sink.write([LINE]) == 0  # not tried
    (small_disk / "others").unlink()
    until(lambda: sink.write([LINE]) == 1, within=5, what="the next try")
    assert sink.problem == ""
    assert (small_disk / "eve.json").read_bytes() == LINE * (written + 1)
    sink.close()


def test_rotation_goes_on_where_only_the_oldest_file_can_make_room(small_disk, monkeypatch):
    monkeypatch.setattr(sinks, "PAUSE", 0.0)
    sink = FileSink(small_disk / "eve.json", size=16_000, files=3)
    assert sum(sink.write([LINE] * 5) for _ in range(100)) == 500
    files = sorted(small_disk.iterdir())
    assert [each.name for each in files] == ["eve.json", "eve.json.1", "eve.json.2"]
    assert all(each.read_bytes() == LINE * (each.stat().st_size // len(LINE)) for each in files)
    sink.close()
