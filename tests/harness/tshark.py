"""tshark, which reads captures and says what it sees in them; and captures made without any code of the product."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache

TIMEOUT = 100
"""Seconds one run of tshark may take."""


def rows(
    capture: bytes, fields: Sequence[str], *, only: str = "", options: Sequence[str] = (), command: Sequence[str] = ()
) -> list[dict[str, str]]:
    """One dict of fields for each packet of a capture that the display filter `only` selects.

    `command` stands before tshark, to run one of another root ("chroot", ROOT).
    """
    named = [argument for field in fields for argument in ("-e", field)]
    chosen = ["-Y", only] if only else []
    shown = tshark(
        "-r", "-", "-n", "-T", "fields", "-E", "separator=/t", *named, *chosen, *options, given=capture, command=command
    )
    lines = shown.decode(errors="replace").splitlines()
    return [dict(zip(fields, line.split("\t"), strict=True)) for line in lines]


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
