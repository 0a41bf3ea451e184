"""Looking for bytes in the memory of living processes, the way a thief with root's rights would."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)")
_CHUNK = 16 * 1024 * 1024


def forms(pem: bytes) -> dict[str, bytes]:
    """How a private key may lie in memory: PEM text, that in base64, DER, its numbers as bytes either way round."""
    key = serialization.load_pem_private_key(pem, None)
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    encoded = base64.b64encode(pem)
    found = {
        "PEM text": pem.splitlines()[2][:32],
        "base64 of the PEM text": encoded[80:144],
        "DER": der[-90:-58] if isinstance(key, ec.EllipticCurvePrivateKey) else der[200:260],
    }
    numbers = {}
    if isinstance(key, ec.EllipticCurvePrivateKey):
        scalar = key.private_numbers().private_value.to_bytes(32, "big")
        found["DER"] = b"\x04\x20" + scalar
        numbers["scalar"] = scalar
    elif isinstance(key, rsa.RSAPrivateKey):
        held = key.private_numbers()
        for name, part in (("p", held.p), ("q", held.q), ("d", held.d), ("dmp1", held.dmp1), ("dmq1", held.dmq1)):
            numbers[name] = part.to_bytes((part.bit_length() + 7) // 8, "big")
    for name, number in numbers.items():
        found[f"{name}, big-endian"] = number
        found[f"{name}, little-endian"] = number[::-1]
    return found


def search(pid: int, needles: Mapping[str, bytes]) -> set[str]:
    """The names of those needles that the memory of a process holds (proc_pid_mem(5)); memfds only if it maps them."""
    found: set[str] = set()
    longest = max(len(needle) for needle in needles.values())
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = _MAPPING.fullmatch(line)
            assert match is not None, line
            begin, end, rights, name = int(match[1], 16), int(match[2], 16), match[3], match[4]
            if "r" not in rights or name in {"[vvar]", "[vvar_vclock]", "[vsyscall]"}:
                continue
            rest = b""
            for at in range(begin, end, _CHUNK):
                memory.seek(at)
                try:
                    part = rest + memory.read(min(_CHUNK, end - at))
                except OSError:
                    break  # unmapped meanwhile, or no memory at all
                found.update(label for label, needle in needles.items() if needle in part)
                rest = part[-longest:]
    return found
