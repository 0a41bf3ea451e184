"""Judges the requests on a connection that a pod makes, each by the host that it is for. Pure.

A client may send requests for several hosts on one connection, and which destinations and rules are meant depends on
the host. `HostsOf` and `OpenedHosts` tell for each host which policies apply to a request, and whether the request is
one that they would have judged in another way.

    HostsOf        requests in clear: the host alone decides, and the name in the first request is that of no other
    OpenedHosts    requests on a connection that was opened as one to a server. What it sends goes to that server,
                   whatever its host is: the policies that the connection is about judge each request. One for another
                   host is judged by those about that host as well, and by both names: rules hold for either, exceptions
                   for both. One whose host servers may take for any is judged by those about any host, and refused
                   where one of them fails closed

    server-name    the request has no host, or one that servers may take for another
    another-host   a destination wants requests for this host to leave in TLS, and they leave in clear; or the
                   connection was opened for another one
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Final

from sidestep.policy.egress import EgressPolicies, EgressPolicy
from sidestep.policy.inspection_match import Address, HostFacts

_PLAIN_NAME: Final = re.compile(rb"[-.0-9A-Za-z_]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
"""Of any other, such as `a.test:` with an empty port, servers may make something else than the rules."""


def server_name(host: bytes) -> str:
    """A host without its port as a name; empty if servers may take it for another one."""
    if _PLAIN_NAME.fullmatch(host) is None:
        return ""
    name = host.decode("ascii")
    if name.startswith("["):
        try:
            return str(ip_address(name[1:-1]))
        except ValueError:
            return name
    return name


class HostsOf:
    """The hosts of one connection. `current` has the policies of the moment, which newer ones may replace.

    `is_told`: it has been told already that the connection does not leave in TLS as a destination wants.
    """

    def __init__(
        self, current: Callable[[], EgressPolicies], address: Address, port: int, *, is_told: bool = False
    ) -> None:
        self._current = current
        self._address = address
        self._port = port
        self._is_told = is_told

    def __call__(self, host: bytes) -> HostFacts:
        """Which policies apply to requests for a host."""
        policies, name = self._current(), server_name(host)
        treatment = policies.treatment(self._address, self._port, name)
        applying = frozenset(each.policy.display for each in treatment.policies)
        wants_tls = [] if self._is_told else policies.originating(self._address, self._port, name)
        fails = any(each.policy.closes for each in policies.reaching(self._address, self._port))
        for doubt, doubting in (("server-name", treatment.doubtful), ("another-host", wants_tls)):
            if doubting and (not fails or any(each.policy.closes for each in doubting)):
                return HostFacts(name, applying, doubt)
        return HostFacts(name, applying)


class OpenedHosts:
    """The hosts of one connection that was opened as one to `name`, by `judging`. `current` is that of `HostsOf`."""

    def __init__(
        self,
        current: Callable[[], EgressPolicies],
        address: Address,
        port: int,
        *,
        name: str,
        judging: Iterable[EgressPolicy],
    ) -> None:
        self._current = current
        self._address = address
        self._port = port
        self._name = name
        self._judging = frozenset(each.policy.display for each in judging)

    def __call__(self, host: bytes) -> HostFacts:
        """Which policies apply to requests for a host."""
        judging = self._judging
        if host.strip(b"[]").lower().rstrip(b".") == self._name.lower().rstrip(".").encode():
            return HostFacts(self._name, judging, judged=judging)
        name = server_name(host)
        treatment = self._current().treatment(self._address, self._port, name)
        applying = judging.union(each.policy.display for each in (*treatment.policies, *treatment.doubtful))
        closing = frozenset(each.policy.display for each in treatment.doubtful if each.policy.closes)
        return HostFacts(name, applying, "another-host", judging, closing)
