"""Chooses the loopback network of an attachment: one that no other attachment to the same namespace has.

The networks that are taken are in the kernel: each attachment has a lookup program on the pod's network namespace, and
that program's settings name its network. So daemons that know nothing of each other (an upgrade) agree, and so does a
daemon with its own attachments that have retired and still answer for open connections.

Two that attach at once may choose the same one before either is seen. Whoever has attached therefore looks again
(`is_taken`), and chooses anew while another program has its network; it steers nothing until then.
"""

from __future__ import annotations

import errno
import os
import random
from ipaddress import IPv4Network
from typing import Final

from sidestep.model.errors import KernelError, RefusedError
from sidestep.steering import bpf
from sidestep.steering.egress_layout import LOOKUP, SETTINGS, SETTINGS_SIZE, network_of

NETWORKS: Final = tuple(IPv4Network(f"127.{number}.0.0/16") for number in range(192, 255))
"""At the upper end of 127.0.0.0/8, away from those of `client_names`."""

_KEY: Final = bytes(4)
_SETTINGS: Final = bpf.object_name(f"sidestep_{SETTINGS}")


def free_network(netns_fd: int) -> IPv4Network:
    """A network that no attachment to this namespace has. Raises RefusedError when all are taken, KernelError."""
    taken = _taken(netns_fd)
    free = [each for each in NETWORKS if each not in taken.values()]
    if not free:
        raise RefusedError(f"{len(NETWORKS)} attachments steer outbound connections of this network namespace already")
    return random.choice(free)  # noqa: S311 - no secret


def is_taken(network: IPv4Network, netns_fd: int, *, but: int) -> bool:
    """Whether another program than `but` (its id) of this namespace has a network. Raises KernelError."""
    return any(found == network for program, found in _taken(netns_fd).items() if program != but)


def _taken(netns_fd: int) -> dict[int, IPv4Network]:
    """The networks of all attachments to a namespace, by the id of their lookup programs.

    A kernel that does not let this process open objects of others tells of none; KernelError for other failures.
    """
    found: dict[int, IPv4Network] = {}
    try:
        for program in bpf.attached_ids(netns_fd):
            network = _network(program)
            if network is not None:
                found[program] = network
    except KernelError as error:
        if error.errno != errno.EPERM:
            raise
    return found


def _network(program: int) -> IPv4Network | None:
    """The network of a lookup program; None for one of another kind, or that has just gone."""
    try:
        fd = bpf.prog_by_id(program)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    try:
        name, maps = bpf.prog_info(fd)
    finally:
        os.close(fd)
    for number in maps if name == LOOKUP else ():
        settings = bpf.map_by_id(number)
        try:
            if bpf.map_name(settings) == _SETTINGS:
                return network_of(bpf.map_lookup(settings, _KEY, value_size=SETTINGS_SIZE, doing="reading settings"))
        finally:
            os.close(settings)
    return None
