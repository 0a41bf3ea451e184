"""What a record of inspection says about the TLS of a connection that was opened, on both of its sides.

Version, cipher suite and protocol are those of the client's connection. The server's certificate is the app's own, as
the handshake with the app showed it; the client's is told if it was verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from sidestep.protocols import eve, tls_weakness
from sidestep.protocols.client_certificate import listed_name
from sidestep.protocols.client_hello import ClientHello, parse
from sidestep.protocols.eve_records import Certificate, Tls, TlsDetails
from sidestep.proxy.io.stream import TlsStream
from sidestep.proxy.tls.certificate_time import certificate_seconds

_SUITES: Final[dict[str, int]] = {}
"""Numbers of OpenSSL's names of cipher suites; filled when one is first asked for."""
_GOOD: Final = 0x1301
"""The number of a cipher suite that is not weak, for one that is not known."""
_VERSIONS: Final = {"TLSv1.3": 0x0304, "TLSv1.2": 0x0303, "TLSv1.1": 0x0302, "TLSv1": 0x0301, "SSLv3": 0x0300}


class OpenedTls(msgspec.Struct, frozen=True):
    """TLS that was opened: both streams, and how the app's certificate is had (as `ssl` shows it; empty if it was not
    verified).
    """

    client: TlsStream
    app: TlsStream
    app_certificate: Callable[[], Mapping[str, object]]

    def describe(self, hello: bytes) -> tuple[Tls, TlsDetails] | None:
        """Return what a record says; None if the connection is closed or broken already.

        `hello` are the records that the ClientHello came in. Without them the record says nothing of what was offered.
        """
        parsed = parse(hello)
        offered = parsed if isinstance(parsed, ClientHello) else None
        state = self.client.state
        if state is None or self.app.state is None:
            return None
        version = _VERSIONS.get(state.version() or "", 0)
        cipher = state.cipher()
        try:
            server = _certificate(self.app.state, self.app_certificate())
            client = _certificate(state, _shown(state))
        except ValueError:  # OpenSSL shows no certificate of a connection that has been shut down or has failed
            return None
        made = eve.tls(offered, version=version, server=server, client=client, resumed=bool(state.session_reused))
        suite = _GOOD if cipher is None else _suite(state, cipher[0])
        of_offer = tls_weakness.of_offer(offered) if offered is not None else ()
        weak = (*of_offer, *tls_weakness.of_connection(version, suite))
        details = TlsDetails(
            alpn=state.selected_alpn_protocol(),
            cipher=None if cipher is None else cipher[0],
            weak=tuple(dict.fromkeys(weak)),
        )
        return made, details


def _suite(state: Any, name: str) -> int:
    if not _SUITES:
        _SUITES.update({each["name"]: each["id"] & 0xFFFF for each in state.context.get_ciphers()})
    return _SUITES.get(name, _GOOD)


def _shown(state: Any) -> Mapping[str, object]:
    try:
        shown: Mapping[str, object] = state.getpeercert() or {}
    except ValueError:  # Python decodes names as UTF-8, OpenSSL does not
        return {}
    return shown


def _certificate(state: Any, shown: Mapping[str, object]) -> Certificate | None:
    """The peer's certificate; without names if it was not verified, None if there is none."""
    der = state.getpeercert(True)
    if not der:
        return None
    serial = str(shown.get("serialNumber", ""))
    return Certificate(
        subject=listed_name(shown, "subject"),
        issuerdn=listed_name(shown, "issuer"),
        fingerprint=_pairs(hashlib.sha1(der, usedforsecurity=False).hexdigest()),
        serial=_pairs(serial) if serial else None,
        notbefore=_time(shown, "notBefore"),
        notafter=_time(shown, "notAfter"),
    )


def _time(shown: Mapping[str, object], name: str) -> str | None:
    value = shown.get(name)
    if not isinstance(value, str):
        return None
    seconds = certificate_seconds(value)
    return None if seconds is None else eve.certificate_time(int(seconds))


def _pairs(digits: str) -> str:
    """Hexadecimal digits in pairs: `0A1B` is `0A:1B`."""
    digits = digits.zfill(len(digits) + len(digits) % 2)
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
