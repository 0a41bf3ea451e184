"""Locks a root child of the zygote into a sandbox, from which it reaches one pod's network and its daemon only.

`lock` is called once, in a single-threaded process, and cannot be undone. The order is forced:

    1. namespaces         entering them needs privileges
    2. descriptors        all are closed but stdio, the control socket and the page of the pulse, which is mapped
    3. resource limits
    4. user and capabilities, then no_new_privs
    5. system calls       every step before needs some that the filter refuses

When a step fails it raises, and the caller must end the process: there is no half-locked proxy.

A proxy that is taken over reaches the pod's own network, the descriptors that the daemon handed to it (listeners, keys
and streams of this pod), its own memory, and the control channel. Its address-space layout is the zygote's, as in every
forked process; therefore the filter forbids executable mappings.
"""

from __future__ import annotations

import os

import msgspec

from sidestep.aio.packets import MAX_PAYLOAD
from sidestep.aio.pulse import Pulse
from sidestep.sandbox import capabilities, namespaces, rlimits, seccomp


class Confinement(msgspec.Struct, frozen=True):
    """What one proxy is confined to: its user and group id, `memory` in bytes (0: no bound), `descriptors` (a
    number)."""

    uid: int
    memory: int
    descriptors: int


def lock(confinement: Confinement, *, netns_fd: int, control_fd: int, pulse_fd: int, program: bytes) -> Pulse:
    """Confine this process; returns the page of the pulse. Consumes `netns_fd` and `pulse_fd`.

    The page is mapped here because no memory can be shared once the filter is installed. `program` is the result of
    `seccomp.assemble()`, made before the fork. Raises KernelError, PeerError, BugError; the caller ends the process
    then.
    """
    namespaces.enter_network(netns_fd)
    namespaces.empty_root(with_descriptors=True)
    close_all_but(control_fd, pulse_fd)
    pulse = Pulse(pulse_fd)
    rlimits.apply(memory=confinement.memory, descriptors=confinement.descriptors, file_size=MAX_PAYLOAD)
    capabilities.become(confinement.uid)
    capabilities.forbid_new_privileges()
    seccomp.install(program)
    return pulse


def close_all_but(*kept: int) -> None:
    """Close every descriptor above stdio except these."""
    begin = 3
    for fd in sorted(kept):
        os.closerange(begin, fd)
        begin = max(begin, fd + 1)
    os.closerange(begin, 2**31 - 1)
