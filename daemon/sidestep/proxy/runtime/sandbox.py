"""From a root child of the zygote to a process that can talk to one pod's network and to its daemon, and nothing else.

`lock` is called once, in a single-threaded process, and cannot be undone. The order matters: namespaces need
privileges, so they come first; then every descriptor but the control socket is closed; then limits, user and
capabilities, the ways to regain them; and last the system calls, since every step before needs some that the filter
refuses. Whatever fails raises, and the caller must end the process: there is no half-locked proxy.

What remains reachable from inside, if the proxy is taken over: the pod's own network, descriptors the daemon handed to
it (this pod's listeners, keys, streams), its memory, the control channel. The address-space layout is the zygote's, as
for every forked process; the filter therefore forbids executable mappings, and nothing beyond the pod is gained.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from sidestep.aio.pulse import Pulse
from sidestep.proxy.runtime import capabilities, namespaces, seccomp
from sidestep.proxy.runtime import rlimits as limits


@dataclass(frozen=True, slots=True)
class Confinement:
    """What one proxy is confined to. `uid` is its own; `memory` in bytes (0: no bound), `descriptors` a count."""

    uid: int
    memory: int
    descriptors: int


def lock(confinement: Confinement, *, netns_fd: int, control_fd: int, pulse_fd: int, program: bytes) -> Pulse:
    """Confine this process. Takes `netns_fd` and `pulse_fd`, keeps `control_fd` and stdio; all other descriptors are
    closed. Returns the page of `pulse_fd`: it is mapped here, because no memory can be shared afterwards.

    `program` is `seccomp.assemble()`, made before the fork. Raises KernelError, PeerError, BugError: end the process.
    """
    namespaces.enter_network(netns_fd)
    namespaces.empty_root()
    close_all_but(control_fd, pulse_fd)
    pulse = Pulse(pulse_fd)
    limits.apply(memory=confinement.memory, descriptors=confinement.descriptors)
    capabilities.become(confinement.uid)
    capabilities.forbid_new_privileges()
    seccomp.install(program)
    return pulse


def close_all_but(*kept: int) -> None:
    """Close every descriptor above stdio but these."""
    begin = 3
    for fd in sorted(kept):
        os.closerange(begin, fd)
        begin = max(begin, fd + 1)
    os.closerange(begin, 2**31 - 1)
