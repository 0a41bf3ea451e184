"""Files of the writer and of others through the reader: whole, cut, spoilt."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.model.errors import ConfigurationError
from sidestep.protocols import pcapng
from sidestep.protocols.pcapng_reader import MAX_BLOCK, MAX_INTERFACES, Packet, Reader, Statistics
from tests.effort import examples

AT = 1_700_000_000_123_456_789


def read(data, size=0):
    reader = Reader()
    found = []
    for at in range(0, len(data), size or len(data) or 1):
        found += reader.feed(data[at : at + (size or len(data))])
    reader.finish()
    return found


def file():
    return (
        pcapng.section(application="Sidestep", comment="made by a test")
        + pcapng.interface("shop/orders-1", description="decrypted", snap_length=96)
        + pcapng.interface("shop/web-1")
        + pcapng.packet(0, AT, b"one!!")
        + pcapng.packet(1, AT + 1, b"second", original_length=600, comments=("TLS 1.3", "rule no-admin"), dropped=7)
        + pcapng.packet(1, AT + 2, b"")
        + pcapng.statistics(1, AT + 3, received=9, dropped=7, comment="full")
    )


def test_what_was_written_is_read():
    first, second, third, counts = read(file())
    assert (first.interface.name, first.timestamp, first.data, first.original_length) == (
        "shop/orders-1",
        AT,
        b"one!!",
        5,
    )
    assert first.interface.link_type == pcapng.LINKTYPE_RAW
    assert first.interface.snap_length == 96
    assert (second.interface.name, second.data, second.original_length) == ("shop/web-1", b"second", 600)
    assert second.comments == ("TLS 1.3", "rule no-admin")
    assert second.dropped == 7
    assert (third.timestamp, third.data) == (AT + 2, b"")
    assert (counts.interface.name, counts.received, counts.dropped) == ("shop/web-1", 9, 7)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 100])
def test_rechunked_files_are_read_alike(size):
    assert read(file(), size) == read(file())


def test_every_prefix_gives_the_blocks_that_are_whole():
    data, whole = file(), read(file())
    for end in range(len(data)):
        reader = Reader()
        found = reader.feed(data[:end])
        assert found == whole[: len(found)]
        if end not in boundaries(data):
            with pytest.raises(ConfigurationError, match="ends inside a block" if end else "is empty"):
                reader.finish()


def boundaries(data):
    ends, at = [], 0
    while at < len(data):
        at += struct.unpack_from("<I", data, at + 4)[0]
        ends.append(at)
    return ends


def test_texts_from_the_network_are_escaped_and_cut():
    data = (
        pcapng.section(application="x")
        + pcapng.interface("a\nb")
        + pcapng.packet(0, 0, b"", comments=("\x1b[2J" + "é" * 9000,))
    )
    (packet,) = read(data)
    assert packet.interface.name == "a\\nb"
    assert packet.comments[0].startswith("\\x1b[2J")
    assert len(packet.comments[0]) < pcapng.MAX_TEXT + 10


def block(kind, body, order="<"):
    size = len(body) + 12
    return struct.pack(f"{order}II", kind, size) + body + struct.pack(f"{order}I", size)


def foreign(order, *blocks):
    return block(pcapng.SECTION, struct.pack(f"{order}IHHQ", pcapng.BYTE_ORDER, 1, 0, 2**64 - 1), order) + b"".join(
        blocks
    )


@pytest.mark.parametrize("order", "<>")
def test_files_of_others(order):
    def option(code, value):
        return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)

    interface = block(1, struct.pack(f"{order}HHI", 1, 0, 4), order)
    options = option(9, b"\x8a") + option(14, struct.pack(f"{order}q", 100)) + option(2, b"eth0") + option(0, b"")
    fine = block(1, struct.pack(f"{order}HHI", 1, 0, 0) + options + b"ignored!", order)
    packets = [
        block(6, struct.pack(f"{order}IIIII", 0, 0, 5, 3, 3) + b"abc\0", order),
        block(6, struct.pack(f"{order}IIIII", 1, 0, 1024, 3, 3) + b"abc\0", order),
        block(3, struct.pack(f"{order}I", 10) + b"abcd", order),
        block(0xBAD, b"a custom block..", order),
        block(5, struct.pack(f"{order}III", 0, 0, 0), order),
    ]
    found = read(foreign(order, interface, fine, *packets))
    assert [(packet.timestamp, packet.data) for packet in found if isinstance(packet, Packet)] == [
        (5000, b"abc"), (101_000_000_000, b"abc"), (None, b"abcd"),
    ]  # fmt: skip
    assert found[3] == Statistics(found[0].interface, None, None)
    assert found[1].interface.name == "eth0"


def test_a_second_section_begins_anew():
    both = read(
        file()
        + foreign(">", block(1, struct.pack(">HHI", 1, 0, 0), ">"), block(3, struct.pack(">I", 1) + b"a\0\0\0", ">"))
    )
    assert both[:4] == read(file())
    assert both[4].data == b"a"


def enhanced(captured, original, rest, on=0):
    return block(pcapng.PACKET, struct.pack("<IIIII", on, 0, 0, captured, original) + rest)


INTERFACE = block(1, struct.pack("<HHI", 1, 0, 0))
HOSTILE = {
    "empty": (b"", "is empty"),
    "pcap": (b"\xd4\xc3\xb2\xa1" + bytes(20), "byte 0: this is a pcap file: convert it with `editcap -F pcapng`"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "compressed with gzip"),
    "text": (b"GET / HTTP/1.1\r\n", "no pcapng file"),
    "short text": (b"GE", "no pcapng file"),
    "no byte order": (block(pcapng.SECTION, b"\0" * 16), "byte order"),
    "version 2": (block(pcapng.SECTION, struct.pack("<IHHQ", pcapng.BYTE_ORDER, 2, 0, 0)), "version 2"),
    "short section": (block(pcapng.SECTION, struct.pack("<I", pcapng.BYTE_ORDER)), "too short"),
    "no multiple of 4": (foreign("<", struct.pack("<III", 6, 13, 0)), "cannot have 13 bytes"),
    "size 0": (foreign("<", struct.pack("<III", 6, 0, 0)), "cannot have 0 bytes"),
    "huge block": (foreign("<", struct.pack("<III", 6, MAX_BLOCK + 4, 0)), "is larger than"),
    "lengths that differ": (foreign("<", block(7, b"abcd")[:-4] + b"\x14\0\0\0"), "lengths of a block differ"),
    "no interface": (foreign("<", enhanced(0, 0, b"")), "interface 0 was not described"),
    "short packet": (foreign("<", INTERFACE, block(6, bytes(8))), "too short"),
    "packet beyond its block": (foreign("<", INTERFACE, enhanced(5, 5, b"abcd")), "longer than its block"),
    "huge packet": (foreign("<", INTERFACE, enhanced(2**32 - 1, 2**32 - 1, b"")), "longer than its block"),
    "more than there was": (foreign("<", INTERFACE, enhanced(4, 3, b"abcd")), "more of a packet"),
    "option beyond its block": (foreign("<", INTERFACE, enhanced(0, 0, b"\1\0\5\0abcd")), "option is longer"),
    "half an option": (foreign("<", block(1, struct.pack("<HHIHHI", 1, 0, 0, 9, 4, 0))), "resolution"),
    "drops of 4 bytes": (foreign("<", INTERFACE, enhanced(0, 0, b"\4\0\4\0abcd")), "too short"),
    "simple packet with more": (foreign("<", INTERFACE, block(3, b"\1\0\0\0" + bytes(8))), "something follows"),
    "obsolete packet": (foreign("<", INTERFACE, block(2, bytes(24))), "obsolete"),
    "interfaces": (foreign("<", *[INTERFACE] * (MAX_INTERFACES + 1)), "more than 4096 interfaces"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("size", [0, 1])
def test_hostile_files_are_refused_with_a_reason(data, said, size):
    if size and len(data) > 5000:
        size = 999
    with pytest.raises(ConfigurationError, match=said) as refused:
        read(data, size)
    assert "capture, byte" in str(refused.value)


@given(st.data())
@settings(deadline=None, max_examples=examples(200))
def test_fuzzed_files_are_read_or_refused(draw):
    data = bytearray(file())
    for _ in range(draw.draw(st.integers(1, 6))):
        at = draw.draw(st.integers(0, len(data) - 1))
        data[at : at + draw.draw(st.integers(0, 3))] = draw.draw(st.binary(max_size=4))
    assert outcome(bytes(data), 0) == outcome(bytes(data), 7)


def outcome(data, size):
    """What is read, or why it is not."""
    try:
        return read(data, size)
    except ConfigurationError as refused:
        return str(refused)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=80), st.lists(st.text(max_size=20), max_size=2)),
        max_size=9,
    )
)
@settings(deadline=None, max_examples=examples())
def test_arbitrary_packets_are_read_as_written(packets):
    data = pcapng.section(application="x") + pcapng.interface("pod")
    for at, payload, comments in packets:
        data += pcapng.packet(0, at, payload, comments=tuple(comments))
    found = read(data)
    assert [(packet.timestamp, packet.data) for packet in found] == [(at, payload) for at, payload, _ in packets]
    for packet, (_, _, comments) in zip(found, packets, strict=True):
        assert len(packet.comments) == sum(bool(comment) for comment in comments)
