"""Records hellos with what a tshark says of them, as the expectations of tests/unit/protocols/test_ja4.py.

    python -m tests.integration.protocols.record_hellos ROOT

ROOT is a root that debootstrap made of a Debian release whose tshark has JA4 (13 or later), with tshark, curl, openssl
and gnutls-bin in it. The hellos are those of the clients of this machine, of the clients in ROOT, of Go and Node where
this machine has them, and some made by hand.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
from pathlib import Path

from tests.harness import tshark
from tests.integration.protocols import tls_clients
from tests.unit.protocols.made_hellos import MADE

FILE = Path(__file__).parents[2] / "unit" / "protocols" / "client_hellos.json"
FIELDS = ("ja3", "ja3_full", "ja4", "ja4_r")

_GO = """package main
import ("crypto/tls"; "os")
var config = tls.Config{ServerName: "app.test", NextProtos: []string{"h2"}}
func main() { tls.Dial("tcp", "127.0.0.1:" + os.Args[1], &config) }
"""


def recorded(root: str) -> dict[str, bytes]:
    """The hellos to record, by the name of their client."""
    hellos = {**MADE, **tls_clients.all_hellos()}
    for name, arguments in tls_clients.PROGRAMS.items():
        if arguments[0] in ("curl", "openssl", "gnutls-cli"):
            hellos[f"{name} (newer)"] = tls_clients.of_program(("chroot", root, *arguments))
    if shutil.which("go"):
        source = Path(root, "hello.go")
        source.write_text(_GO)
        hellos["go"] = tls_clients.of_program(("go", "run", str(source), "PORT"))
        source.unlink()
    if shutil.which("node"):
        script = 'require("tls").connect({port: PORT, host: "127.0.0.1", servername: "app.test"})'
        hellos["node"] = tls_clients.of_program(("node", "-e", script))
    return hellos


def main(root: str) -> None:
    """Ask the tshark of the root and write the file."""
    command = ("chroot", root)
    hellos = recorded(root)
    capture = tshark.first_segments(hellos.values())
    found = tshark.rows(capture, [f"tls.handshake.{field}" for field in FIELDS], command=command)
    expected = [
        {"client": name, **dict(zip(FIELDS, row.values(), strict=True)), "hello": base64.b64encode(hello).decode()}
        for (name, hello), row in zip(hellos.items(), found, strict=True)
    ]
    version = tshark.tshark("--version", command=command).decode().splitlines()[0]
    rows = ",\n  ".join(json.dumps(row) for row in expected)
    FILE.write_text(f'{{"tshark": {json.dumps(version)}, "hellos": [\n  {rows}\n]}}\n')
    print(f"{len(expected)} hellos in {FILE}")


if __name__ == "__main__":
    main(sys.argv[1])
