"""What the kernel says of a pod's network and its client's, for the text of a failure."""

from __future__ import annotations

from tests.harness.namespaces import Netns, PodNamespace

COUNTERS = frozenset(
    {
        "AttemptFails", "EstabResets", "InErrs", "OutRsts", "RetransSegs", "ListenDrops", "ListenOverflows",
        "PruneCalled", "RcvPruned", "OfoPruned", "RcvQDrop", "TCPAbortFailed", "TCPAbortOnClose",
        "TCPAbortOnData", "TCPAbortOnLinger", "TCPAbortOnMemory", "TCPAbortOnTimeout", "TCPBacklogDrop",
        "TCPMemoryPressures", "TCPMinTTLDrop", "TCPReqQFullDrop", "TCPSynRetrans", "TCPTimeouts",
        "TCPTimeWaitOverflow", "TCPWqueueTooBig", "TCPZeroWindowDrop",
    }
)  # fmt: skip
"""Of /proc/net/snmp and /proc/net/netstat: what breaks or delays connections."""
LINES = 40
"""Sockets that are named at most."""


def facts(space: PodNamespace) -> str:
    """Counters that are not 0, the memory of all sockets, and the connections of both namespaces that are not idle."""
    return "\n".join(f"{name}: {_of(netns)}" for name, netns in (("pod", space.pod), ("client", space.client)))


def _of(netns: Netns) -> str:
    words = netns.run("cat", "/proc/net/sockstat").splitlines()
    counters = " ".join(f"{name}={value}" for name, value in sorted(_counters(netns).items()) if value)
    table = netns.run("ss", "-tanoiH", "exclude", "time-wait").splitlines()
    # A connection is a line of its state and one of its details.
    heads = [at for at, line in enumerate(table) if not line.startswith((" ", "\t"))]
    busy = [table[at : at + 2] for at in heads if table[at].split()[1:3] != ["0", "0"] or "SYN" in table[at]]
    lines = [f"    {' '.join(' '.join(each).split())}" for each in busy[:LINES]]
    return "\n".join(["; ".join(words[:2]), f"    {counters}", f"    {len(heads)} sockets, busy:", *lines])


def _counters(netns: Netns) -> dict[str, int]:
    found = {}
    rows = netns.run("cat", "/proc/net/snmp", "/proc/net/netstat").splitlines()
    for names, values in zip(rows[::2], rows[1::2], strict=True):
        pairs = zip(names.split()[1:], values.split()[1:], strict=True)
        found.update({name: int(value) for name, value in pairs if name in COUNTERS})
    return found
