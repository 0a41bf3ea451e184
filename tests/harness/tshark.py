"""tshark, which reads captures and says what it sees in them; and captures made without any code of the product."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import cache

TIMEOUT = 100
"""Seconds one run of tshark may take."""
TIME = "frame.time_epoch"
STRICT = ("-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE")
COMPLAINTS = "tcp.analysis.flags || _ws.malformed || tcp.checksum.status == 0 || ip.checksum.status == 0 || _ws.expert"


def rows(
    capture: bytes, fields: Sequence[str], *, only: str = "", options: Sequence[str] = (), command: Sequence[str] = ()
) -> list[dict[str, str]]:
    """One dict of fields for each packet of a capture that the display filter `only` selects, the oldest first.

    In a file the packets of several connections stand in the order in which they arrived there, which may be another
    than that of their times. An empty file has none. `command` stands before tshark, to run one of another root
    ("chroot", ROOT).
    """
    if not capture:
        return []
    named = [argument for field in (TIME, *fields) for argument in ("-e", field)]
    chosen = ["-Y", only] if only else []
    shown = tshark(
        "-r", "-", "-n", "-T", "fields", "-E", "separator=/t", *named, *chosen, *options, given=capture, command=command
    )
    lines = [line.split("\t") for line in shown.decode(errors="replace").splitlines()]
    lines.sort(key=lambda values: Decimal(values[0]))
    return [dict(zip(fields, values[1:], strict=True)) for values in lines]


RESET = "Connection reset (RST)"
"""tshark's warning of a connection that was reset."""


def so_far(growing: bytes) -> bytes:
    """The whole blocks at the beginning of a pcapng file that is still written; tshark refuses half a block."""
    end = 0
    while len(growing) - end >= 8 and end + (length := struct.unpack_from("<4xI", growing, end)[0]) <= len(growing):
        assert length >= 12, "a block of pcapng"
        end += length
    return growing[:end]


def complaints(file: bytes, *options: str) -> list[dict[str, str]]:
    """What tshark finds wrong.

    Comments, its notes about what a protocol says (chat), and resets are left out: curl of Debian 13 ends a connection
    by a reset when it has not read everything.
    """
    only = (
        f"({COMPLAINTS}) && !(_ws.expert.severity in {{0x100000, 0x200000}} && !tcp.analysis.flags && !_ws.malformed)"
    )
    fields = ["frame.number", "_ws.expert.message", "_ws.expert.severity"]
    found = rows(file, fields, only=only, options=(*STRICT, *options))
    return [row for row in found if row["_ws.expert.message"] != RESET]


def packets(capture: bytes, *, only: str = "", options: Sequence[str] = ()) -> list[dict]:
    """tshark's JSON of the layers of each packet."""
    chosen = ["-Y", only] if only else []
    return json.loads(tshark("-r", "-", "-n", "-T", "json", *chosen, *options, given=capture))


def tshark(*arguments: str, given: bytes = b"", command: Sequence[str] = ()) -> bytes:
    """The standard output of tshark, which has to be content with what it got."""
    done = subprocess.run(
        [*command, "tshark", *arguments], input=given, capture_output=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


@cache
def has_field(name: str) -> bool:
    """Whether the tshark of this machine knows a field: Wireshark 4.0 has no JA4."""
    return f"\t{name}\t".encode() in tshark("-G", "fields")


def first_segments(payloads: Iterable[bytes]) -> bytes:
    """A pcap file of linktype IPV4 (228) with a TCP segment to port 443 for each payload, no two of one connection."""
    capture = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 228)
    for number, payload in enumerate(payloads):
        tcp = struct.pack(">HHIIBBHHH", 10000 + number, 443, 1, 1, 0x50, 0x18, 65535, 0, 0)
        addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2])
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(payload), number, 0, 64, 6, 0) + addresses
        packet = ip + tcp + payload
        capture += struct.pack("<IIII", number, 0, len(packet), len(packet)) + packet
    return capture
