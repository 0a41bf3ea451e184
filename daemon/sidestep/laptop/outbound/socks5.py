"""SOCKS version 5 (RFC 1928), with user name and password (RFC 1929): what a client says, and what it is answered.

    greeting    05 n METHODS            -> 05 METHOD (00 none, 02 password, FF neither)
    password    01 n USER m PASSWORD    -> 01 00, or 01 01 and the end
    request     05 COMMAND 00 ADDRESS   -> 05 REPLY 00 ADDRESS

ADDRESS is a type (01 IPv4, 03 name, 04 IPv6), what it says, and two bytes of port. Datagrams have the header
`00 00 FRAGMENT ADDRESS`; fragments are dropped, as the RFC permits. What is not exactly that raises PeerError.
"""

from __future__ import annotations

import enum
import secrets
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import msgspec

from sidestep.laptop.outbound.conversation import Conversation
from sidestep.model.errors import PeerError
from sidestep.protocols.resolver_files import address_of

VERSION: Final = 5
VERSION_4: Final = 4
REFUSED_4: Final = b"\0\x5b" + bytes(6)
"""The answer to a client of SOCKS version 4: refused. It has no way to say why."""
_NO_METHOD, _NONE, _PASSWORD = 0xFF, 0, 2
_IPV4, _NAME, _IPV6 = 1, 3, 4
_NOBODY: Final = b"\x01\0\0\0\0\0\0"
"""The address 0.0.0.0:0 of replies that have none."""


class Command(enum.IntEnum):
    """What a client may ask for."""

    CONNECT = 1
    UDP_ASSOCIATE = 3


class Reply(enum.IntEnum):
    """What it may be answered."""

    SUCCEEDED = 0
    FAILED = 1
    COMMAND_UNKNOWN = 7
    ADDRESS_UNKNOWN = 8


class Place(msgspec.Struct, frozen=True):
    """A host, as address or name, and a port."""

    host: str
    port: int


async def greet(client: Conversation, *, user: str, password: str, is_ours: bool) -> None:
    """Agree on how the client shows who it is, and have it do so. `is_ours`: that is known already.

    Raises PeerError when it does not; it has been told.
    """
    version, count = await client.exactly(2)
    methods = await client.exactly(count)
    if version != VERSION:
        raise PeerError("a client speaks another version of SOCKS")
    if is_ours and _NONE in methods:
        await client.say(bytes((VERSION, _NONE)))
        return
    if _PASSWORD not in methods:
        await client.say(bytes((VERSION, _NO_METHOD)))
        raise PeerError("a client does not show that it may use this proxy")
    await client.say(bytes((VERSION, _PASSWORD)))
    (sub_version,) = await client.exactly(1)
    given_user = await client.exactly((await client.exactly(1))[0])
    given = await client.exactly((await client.exactly(1))[0])
    right = secrets.compare_digest(given_user, user.encode()) & secrets.compare_digest(given, password.encode())
    if sub_version != 1 or not right:
        await client.say(b"\x01\x01")
        raise PeerError("a client gives a wrong password")
    await client.say(b"\x01\0")


async def request(client: Conversation) -> tuple[Command, Place]:
    """Return what the client asks for. Raises PeerError; it has been told."""
    version, code, reserved, kind = await client.exactly(4)
    if version != VERSION or reserved:
        raise PeerError("a client's request is not that of SOCKS version 5")
    size = {_IPV4: 4, _IPV6: 16}.get(kind)
    if kind == _NAME:
        (size,) = await client.exactly(1)
    if size is None:
        await reply(client, Reply.ADDRESS_UNKNOWN)
        raise PeerError("a client asks for a kind of address that is unknown")
    host, port = await client.exactly(size), await client.exactly(2)
    try:
        place = _place(kind, host, port)
    except PeerError:
        await reply(client, Reply.FAILED)
        raise
    try:
        command = Command(code)
    except ValueError as error:
        await reply(client, Reply.COMMAND_UNKNOWN)
        raise PeerError("a client asks for something else than to connect") from error
    if place.port == 0 and command is Command.CONNECT:
        await reply(client, Reply.FAILED)
        raise PeerError("a client asks for port 0")
    return command, place


async def reply(client: Conversation, code: Reply, place: Place | None = None) -> None:
    """Answer a request. `place` is where datagrams are to be sent."""
    await client.say(bytes((VERSION, code, 0)) + (_NOBODY if place is None else encode(place)))


def encode(place: Place) -> bytes:
    """Return a place as an ADDRESS."""
    port = place.port.to_bytes(2, "big")
    address = address_of(place.host)
    if isinstance(address, IPv4Address | IPv6Address):
        return bytes((_IPV4 if address.version == 4 else _IPV6,)) + address.packed + port
    name = place.host.encode("ascii")
    return bytes((_NAME, len(name))) + name + port


def datagram(data: bytes) -> tuple[Place, bytes] | None:
    """Return where a client's datagram is to go, and what it is; None for a fragment, or what is none."""
    if len(data) < 5 or data[:3] != b"\0\0\0":
        return None
    kind, start, size = data[3], 4, {_IPV4: 4, _IPV6: 16}.get(data[3])
    if kind == _NAME:
        start, size = 5, data[4]
    if size is None or len(data) < start + size + 2:
        return None
    try:
        place = _place(kind, data[start : start + size], data[start + size : start + size + 2])
    except PeerError:
        return None
    return (place, data[start + size + 2 :]) if place.port else None


def _place(kind: int, host: bytes, port: bytes) -> Place:
    number = int.from_bytes(port, "big")
    if kind != _NAME:
        return Place(str(IPv4Address(host) if kind == _IPV4 else IPv6Address(host)), number)
    return Place(host_of(host), number)


def host_of(name: bytes) -> str:
    """Return a name or address of a host as text: visible ASCII. Raises PeerError."""
    if not name or len(name) > 255 or not all(0x21 <= each < 0x7F for each in name):
        raise PeerError("a client asks for a name that is none of a host")
    return name.decode("ascii")
