"""The closed ports of one pod: those on which a connection that is not steered is refused and never reaches the app.

An accepted policy that enforces and has `failurePolicy: Fail` closes a port (`snapshots.ports.PortSnapshot.closes`);
nothing else does. The kernel refuses (`bpf/sidestep_lookup.c`), so it makes no difference whether the proxy or this
daemon's loop is slow.

States of a port

    open      it has no entry in the kernel's map: what is not steered reaches the app
    closed    it has one for each address family: what is not steered is refused

    from    to      when
    open    closed  it is programmed: the proxy has its policies and its listener (the first look after that)
    open    closed  a plan begins to close a port that has a listener already: at once, before the proxy is told
    open    closed  the proxy is gone, or ends again and again, before the port was programmed
    open    closed  the program is attached where another one is attached, which is a daemon that hands over: at once
    closed  open    a plan does not close it any more, or does not have it: at once, before the proxy is told
    closed  open    this daemon hands over and its successor's program is attached (`hand_over`)
    closed  open    the program is detached: the pod is released, or this daemon ends, however it ends

Invariants

- Whether a port is steered makes no difference to its entry. It stays while the port is steered, so there is no moment
  between steering and refusing, and a listener that somebody in the pod ends does not open the port.
- Nothing that fails opens a port: not the proxy, its listener, its queue, the app or a question to the kernel. Only
  what stands in the table does.
- A port that no plan closes has no entry: `keep_only` and the audit (`repair`) see to it.
- Dials from inside the pod, datagrams and connections that exist are never refused.
- If the kernel does not let a port be opened, the owner detaches the program, which opens everything. If it does not
  let one be closed, the port stays open, the condition SteeringFailed says so, and the next look tries again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from sidestep.model.pod import Family, Transport
from sidestep.steering import programs_attached

if TYPE_CHECKING:
    from sidestep.node.pods.datagram_ports import Entry
    from sidestep.steering import Steering


def entries_of(numbers: Iterable[int]) -> frozenset[Entry]:
    """The entries that close these TCP ports."""
    return frozenset((number, Transport.TCP, family) for number in numbers for family in Family)


class ClosedPorts:
    """Which ports are closed in the kernel, and the only writer of that map."""

    def __init__(self) -> None:
        self._steering: Steering | None = None
        self._numbers: set[int] = set()
        self._handed_over = False

    def enter(self, steering: Steering, *, closed: Collection[int]) -> None:
        """Begin with a program that was attached with these ports closed."""
        self._steering = steering
        self._numbers = set(closed)

    def detached(self) -> None:
        """The program is gone, and everything is open."""
        self._steering = None
        self._numbers.clear()

    def __contains__(self, number: object) -> bool:
        return number in self._numbers

    def close(self, number: int) -> None:
        """Close a port, unless a successor decides about it. Raises KernelError."""
        if self._steering is None or self._handed_over or number in self._numbers:
            return
        for entry in sorted(entries_of([number])):
            self._steering.close_port(*entry)
        self._numbers.add(number)

    def open(self, number: int) -> None:
        """Open a port. Raises KernelError."""
        if self._steering is None or number not in self._numbers:
            return
        for entry in sorted(entries_of([number])):
            self._steering.open_port(*entry)
        self._numbers.discard(number)

    def keep_only(self, numbers: Collection[int]) -> None:
        """Open every port but these. Raises KernelError."""
        for number in sorted(self._numbers.difference(numbers)):
            self.open(number)

    def hand_over(self, netns_fd: int) -> None:
        """This daemon hands over: open everything for good once another program is attached. Raises KernelError."""
        if self._steering is not None and not self._handed_over and programs_attached(netns_fd) > 1:
            self._handed_over = True
            self.keep_only(())

    def repair(self) -> list[str]:
        """Compare with the kernel's map and correct it; a text for each difference. Raises KernelError."""
        if self._steering is None:
            return []
        found = []
        real, expected = self._steering.closed_ports(), entries_of(self._numbers)
        for entry in sorted(expected - real):
            found.append(f"port {entry[0]}/{entry[1]} ({entry[2].name}) was not closed any more")
            self._steering.close_port(*entry)
        for entry in sorted(real - expected):
            found.append(f"port {entry[0]}/{entry[1]} ({entry[2].name}) was closed without a reason")
            self._steering.open_port(*entry)
        return found
