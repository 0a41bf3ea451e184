"""The command's side of a capture: whatever a pod proxy sends, the file stays one that can be read."""

import asyncio
import random
import struct

import pytest

from sidestep.laptop.capture import CaptureChannel, CaptureFile
from sidestep.laptop.capture_target import CaptureTarget
from sidestep.protocols import pcapng_reader
from sidestep.protocols.capture_frames import FrameKind, encode
from sidestep.tunnel.errors import ChannelBrokenError
from sidestep.tunnel.opening import StreamOpening
from tests import effort

TIMES = (0, 1, 2**63, 2**64 - 1)
TEXTS = (
    b"",
    b"10.0.0.1 80",
    b"::1 80",
    b"10.0.0.1 99999",
    b"x 1",
    b"10.0.0.1 8_0",
    b"\xff" * 65536,
    b"a\n\x1b[2J" * 99,
)
COUNTS = (0, 1, 2**32, 2**48, 2**48 + 1, 2**64 - 1)


def frame(chance):
    kind = chance.choice(range(8))
    data = struct.pack("!Q", chance.choice(COUNTS)) if kind == FrameKind.LOST else chance.choice(TEXTS)
    if chance.random() < 0.1:
        data = chance.randbytes(chance.randrange(100))
    length = len(data) if chance.random() < 0.98 else 2**32 - 1
    return struct.pack("!BBQI", kind, chance.choice((0, 1, 1, 0, 9)), chance.choice(TIMES), length) + data


async def hostile(path, seed):
    chance = random.Random(seed)
    file = CaptureFile(CaptureTarget(path, standard_output=1), max_bytes=2**40)
    await file.begin()
    for _ in range(30):
        client = chance.choice(("10.0.0.2", "fd00::2"))
        opening = StreamOpening("u", "shop/a", 80, client, chance.choice((0, 1, 65535)), "tcp", tls=True, capture=True)
        channel = CaptureChannel(file, opening)
        try:
            if chance.random() < 0.9:
                await channel.write(encode(FrameKind.START, chance.choice(TIMES), b"10.0.0.1 80"))
            for _ in range(20):
                await channel.write(frame(chance))
            await channel.write_eof()
        except ChannelBrokenError:
            pass
        chance.choice((channel.close, channel.abort))()
    await file.aclose()
    return file


@pytest.mark.parametrize("seed", range(effort.examples(8)))
def test_a_compromised_proxy_cannot_break_the_file(tmp_path, seed):
    path = tmp_path / "a.pcapng"
    file = asyncio.run(hostile(path, seed))
    data = path.read_bytes()
    assert len(data) >= file.size
    reader = pcapng_reader.Reader()
    found = [each for each in reader.feed(data) if isinstance(each, pcapng_reader.Packet)]
    reader.finish()
    assert len(found) == file.packets.total()


def test_the_file_ends_at_its_bound_and_says_so(tmp_path):
    async def body():
        file = CaptureFile(CaptureTarget(tmp_path / "a", standard_output=1), max_bytes=2000)
        await file.begin()
        channel = CaptureChannel(file, StreamOpening("u", "shop/a", 80, "10.0.0.2", 5, "tcp", tls=True, capture=True))
        await channel.write(encode(FrameKind.START, 1, b"10.0.0.1 80"))
        await channel.write(encode(FrameKind.DATA, 2, b"a" * 5000))
        assert file.full.is_set()
        assert file.reason == "the capture has reached 2000 bytes"
        assert channel.hung_up()
        await file.aclose()

    asyncio.run(body())


def test_nothing_is_written_before_it_begins(tmp_path):
    async def body():
        file = CaptureFile(CaptureTarget(tmp_path / "a", standard_output=1), max_bytes=2000)
        channel = CaptureChannel(file, StreamOpening("u", "shop/a", 80, "10.0.0.2", 5, "tcp", tls=True, capture=True))
        writing = asyncio.create_task(channel.write(encode(FrameKind.START, 1, b"10.0.0.1 80")))
        done, _ = await asyncio.wait({writing}, timeout=0.1)
        assert not done
        await file.aclose()
        assert [*tmp_path.iterdir()] == []
        writing.cancel()

    asyncio.run(body())
