"""Looks names up as the pod does: its /etc/hosts, its name servers, its search domains (resolv.conf(5)).

    name -> hosts -> found
             `-> each candidate in turn (`resolver_files.candidates`)
                   both kinds of address, from one UDP socket to one server, `timeout` seconds, or GRACE after IPv4
                   addresses; then the next server; all of that `attempts` times
                     found                      -> the addresses, IPv4 first
                     no such name, none of them -> the next candidate
                     failed (SERVFAIL …)        -> the next candidate, as the C library does
                     no server answers          -> the end: what a later name has may be somebody else's

Each question has a random number and a socket of its own that is connected to the server, so answers from elsewhere do
not arrive. What is cut off is asked for again over TCP. All of it ends at the caller's deadline.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from sidestep.model.errors import PeerError, RefusedError
from sidestep.protocols.dns_answers import KINDS, MAX_ANSWER, Answer, Outcome, Question
from sidestep.protocols.resolver_files import ResolverSettings, candidates
from sidestep.proxy.access.deadline import Deadline
from sidestep.proxy.io.loop import READ, WRITE, Loop
from sidestep.proxy.io.task import Watch

Address = IPv4Address | IPv6Address

PORT: Final = 53
MAX_STRAY: Final = 16
"""Datagrams of a server that answer nothing asked, after which it counts as silent."""
GRACE: Final = 0.25
"""Seconds for the answer about IPv6 addresses, once there are IPv4 ones, which are tried first: some servers answer
about A and drop questions about AAAA. Long beside the 50 ms of RFC 8305 section 3: a kind that comes too late is not
connected to at all. IPv4 addresses are waited for in full, since a pod may have no IPv6."""
_MAX_DATAGRAM: Final = 4096
_LOOPBACK: Final[tuple[Address, ...]] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


class Resolver:
    """Looks up one name."""

    def __init__(
        self, loop: Loop, settings: ResolverSettings, hosts: Mapping[str, tuple[Address, ...]], deadline: Deadline
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._hosts = hosts
        self._deadline = deadline

    async def addresses(self, name: str) -> tuple[Address, ...]:
        """Return the addresses of a name, at least one. Raises RefusedError, ConfigurationError, TimeoutError."""
        plain = name.rstrip(".").lower()
        if plain in self._hosts:
            return self._hosts[plain]
        if plain == "localhost" or plain.endswith(".localhost"):  # RFC 6761 section 6.3
            return _LOOPBACK
        names, failed = candidates(name, self._settings), False
        for candidate in names:
            if not 0 < len(candidate) <= 253:
                continue
            answers = await self._ask(candidate)
            found = [address for each in answers for address in each.addresses]
            if found:
                return tuple(sorted(found, key=lambda address: address.version))
            failed = failed or any(each.outcome is Outcome.FAILED for each in answers)
        asked = ", ".join(names[:8])
        if failed:
            raise RefusedError(f"the pod's name server cannot tell the address of {name} (asked for {asked})")
        raise RefusedError(f"the pod knows no host {name} (asked for {asked})")

    async def _ask(self, name: str) -> list[Answer]:
        """Return the answers to both questions, or those that came. Raises RefusedError when no server answered."""
        waiting = {int(kind): Question(name, kind, number=secrets.randbelow(1 << 16)) for kind in KINDS}
        answers: list[Answer] = []
        for _ in range(self._settings.attempts):
            for server in self._settings.servers:
                for kind, answer in (await self._ask_server(server, list(waiting.values()))).items():
                    if answer.outcome is not Outcome.FAILED:
                        del waiting[kind]
                    answers.append(answer)
                if not waiting or any(each.addresses for each in answers):
                    return answers
        if not answers:
            servers = ", ".join(map(str, self._settings.servers))
            raise RefusedError(f"the pod's name servers do not answer ({servers}; asked for {name})")
        return answers

    async def _ask_server(self, server: Address, questions: list[Question]) -> dict[int, Answer]:
        """Return what a server answered within its time, by kind; unreadable answers count as failures."""
        found: dict[int, Answer] = {}
        if not self._settings.over_tcp:
            try:
                await self._over_udp(server, questions, found)
            except (OSError, TimeoutError):
                pass  # unreachable or silent: another one is asked
            questions = [
                each for each in questions if each.kind in found and found[each.kind].outcome is Outcome.TRUNCATED
            ]
        for question in questions:
            found.pop(question.kind, None)
            try:
                found[question.kind] = await self._over_tcp(server, question)
            except (OSError, TimeoutError):
                pass
        self._deadline.check()
        return found

    async def _over_udp(self, server: Address, questions: list[Question], found: dict[int, Answer]) -> None:
        sock = socket.socket(_family(server), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        watch: Watch | None = None
        try:
            sock.connect((str(server), PORT))
            watch = Watch(self._loop, sock.fileno(), seconds=self._seconds())
            for question in questions:
                sock.send(question.encode())
            for _ in range(MAX_STRAY):
                await watch.event(READ)
                taken = _take(sock.recv(_MAX_DATAGRAM), questions, found)
                if len(found) == len(questions):
                    return
                if taken is not None and any(each.version == 4 for each in taken.addresses):
                    watch.restart(min(GRACE, self._seconds()))
        finally:
            if watch is not None:
                watch.close()
            sock.close()

    async def _over_tcp(self, server: Address, question: Question) -> Answer:
        sock = socket.socket(_family(server), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        watch: Watch | None = None
        try:
            sock.connect_ex((str(server), PORT))
            watch = Watch(self._loop, sock.fileno(), seconds=self._seconds())
            await watch.event(WRITE)
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, "connect")
            data = question.encode()
            sock.send(len(data).to_bytes(2, "big") + data)  # it fits into the buffer of a new connection
            size = int.from_bytes(await _exactly(sock, watch, 2), "big")
            if not 0 < size <= MAX_ANSWER:
                return Answer(Outcome.FAILED)
            received: dict[int, Answer] = {}
            _take(await _exactly(sock, watch, size), [question], received)
            return received.get(question.kind, Answer(Outcome.FAILED))
        finally:
            if watch is not None:
                watch.close()
            sock.close()

    def _seconds(self) -> float:
        return min(float(self._settings.timeout), self._deadline.left())


async def _exactly(sock: socket.socket, watch: Watch, size: int) -> bytes:
    data = b""
    while len(data) < size:
        await watch.event(READ)
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise ConnectionResetError("the name server ended the connection")
        data += chunk
    return data


def _take(data: bytes, questions: list[Question], found: dict[int, Answer]) -> Answer | None:
    """Note the answer to one of the questions, and return it; None when it answers none."""
    for question in questions:
        if question.kind not in found:
            try:
                answer = question.answer(data)
            except PeerError:
                answer = None
            if answer is not None:
                found[question.kind] = answer
                return answer
    return None


def _family(address: Address) -> int:
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET
