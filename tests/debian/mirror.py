"""Where Debian's packages come from: the mirror, the proxy and the trust that this machine's apt is configured with.

Every suite is taken from the mirror that serves the machine's own, so nothing here names a host. A machine that is not
a Debian, or whose suite comes from a mirror without the others, names one in `SIDESTEP_DEBIAN_MIRROR`.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tempfile
from pathlib import Path

from tests.debian.cache import BuildError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""The keys of all current suites (package debian-archive-keyring)."""

TRUST = ("/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
"""Folders with the authorities that this machine trusts."""

_RELEASE = re.compile(r"^'(?P<mirror>\S+)/dists/(?P<suite>[^/']+)/(?:In)?Release'", re.MULTILINE)


def mirror() -> str:
    """The URL of the archive, without a slash at the end. Raises BuildError when apt knows none."""
    if named := os.environ.get("SIDESTEP_DEBIAN_MIRROR"):
        return named.rstrip("/")
    system = platform.freedesktop_os_release()
    # With an empty folder of lists apt prints what it would fetch, whether or not it has fetched it before.
    with tempfile.TemporaryDirectory() as lists:
        (Path(lists) / "partial").mkdir()
        printed = _output("apt-get", "-o", f"Dir::State::Lists={lists}", "update", "--print-uris")
    if system["ID"] == "debian":
        for found in _RELEASE.finditer(printed):
            if found["suite"] in (system.get("VERSION_CODENAME"), "stable", "testing", "sid"):
                return found["mirror"]
    raise BuildError("apt of this machine is configured with no Debian mirror: name one in SIDESTEP_DEBIAN_MIRROR")


def apt_settings() -> str:
    """How apt of this machine fetches (proxy, certificates, timeouts), as an apt.conf(5)."""
    lines = _output("apt-config", "dump", "Acquire").splitlines()
    kept = [line for line in lines if not re.match(r'Acquire::(IndexTargets|cdrom)\b|.* "";$', line)]
    return "\n".join([*kept, 'APT::Sandbox::User "root";', ""])


def environment() -> dict[str, str]:
    """The variables by which programs other than apt find the proxy and the trust of this machine."""
    kept = re.compile(r"(?i)^(https?|ftp|no|all)_proxy$|^(SSL_CERT_|PIP_|REQUESTS_CA_|CURL_CA_)")
    found = {name: value for name, value in os.environ.items() if kept.match(name)}
    for scheme in ("http", "https"):
        proxy = _output("apt-config", "dump", "--format", "%v", f"Acquire::{scheme}::Proxy").strip()
        if proxy and proxy != "DIRECT":
            found.setdefault(f"{scheme}_proxy", proxy)
    return found


def architecture() -> str:
    """Debian's name of this machine's architecture, e.g. `amd64`."""
    return _output("dpkg", "--print-architecture").strip()


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
