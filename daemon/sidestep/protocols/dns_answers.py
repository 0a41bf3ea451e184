"""Questions to a name server, and what its answers say: addresses of a name (RFC 1035, RFC 3596). By dnspython.

An answer may come from anybody. It counts if it repeats the number and the question; it is at most MAX_ANSWER bytes,
and dnspython follows at most 16 aliases (CNAME) within it.
"""

from __future__ import annotations

import enum
import importlib
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import msgspec

from sidestep.model.errors import ConfigurationError, PeerError
from sidestep.protocols.resolver_files import MAX_ADDRESSES

for _kind in ("IN.A", "IN.AAAA", "ANY.CNAME", "ANY.SOA"):
    importlib.import_module(f"dns.rdtypes.{_kind}")  # dnspython loads them at first use; a pod proxy has no files then

Address = IPv4Address | IPv6Address

MAX_ANSWER: Final = 16 * 1024
"""Bytes of an answer over TCP; of its records no more than MAX_ADDRESSES are used."""
KINDS: Final = (dns.rdatatype.A, dns.rdatatype.AAAA)


class Outcome(enum.Enum):
    """What an answer says about a name."""

    FOUND = "found"
    NOTHING = "nothing"
    """No such name, or no address of this kind."""
    FAILED = "failed"
    """The server could not, or did not want to, tell."""
    TRUNCATED = "truncated"
    """Ask again over TCP."""


class Answer(msgspec.Struct, frozen=True):
    """What a server answered to one question."""

    outcome: Outcome
    addresses: tuple[Address, ...] = ()


class Question:
    """One question for addresses of a name. `number` is random, 16 bits, so that answers are hard to forge."""

    def __init__(self, name: str, kind: dns.rdatatype.RdataType, *, number: int) -> None:
        """Raises ConfigurationError for a name that is none."""
        try:
            asked = dns.name.from_text(name, origin=dns.name.root, idna_codec=_NO_IDNA)
        except (dns.exception.DNSException, UnicodeError) as error:
            raise ConfigurationError(f"{name[:100]!r} is no name of a host") from error
        self._message = dns.message.make_query(asked, kind, id=number)
        self.kind: int = kind

    def encode(self) -> bytes:
        """Return the bytes of the question."""
        return self._message.to_wire()

    def answer(self, data: bytes) -> Answer | None:
        """Return what an answer says; None for one that answers another question. Raises PeerError."""
        try:
            found = dns.message.from_wire(data, ignore_trailing=True)
            if not self._message.is_response(found):
                return None
            return _judged(found)
        except (dns.exception.DNSException, ValueError, ImportError) as error:
            raise PeerError("the answer of the name server cannot be read") from error


class _NoIdna(dns.name.IDNACodec):
    """Names are looked up as they are, in ASCII."""

    def encode(self, label: str) -> bytes:
        """As IDNACodec.encode."""
        return label.encode("ascii")


_NO_IDNA: Final = _NoIdna()  # type: ignore[no-untyped-call]  # of dnspython


def _judged(found: dns.message.Message) -> Answer:
    if found.flags & dns.flags.TC:
        return Answer(Outcome.TRUNCATED)
    code = found.rcode()
    if code == dns.rcode.NXDOMAIN:
        return Answer(Outcome.NOTHING)
    if code != dns.rcode.NOERROR or not isinstance(found, dns.message.QueryMessage):
        return Answer(Outcome.FAILED)
    records = found.resolve_chaining().answer
    if records is None:
        return Answer(Outcome.NOTHING)
    return Answer(Outcome.FOUND, tuple(ip_address(each.address) for each in list(records)[:MAX_ADDRESSES]))
