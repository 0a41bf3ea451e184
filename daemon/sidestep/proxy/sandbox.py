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

from sidestep.proxy import capabilities, limits, namespaces, seccomp


@dataclass(frozen=True, slots=True)
class Confinement:
    """What one proxy is confined to. `uid` is its own; `memory` in bytes (0: no bound), `descriptors` a count."""

    uid: int
    memory: int
    descriptors: int


def lock(confinement: Confinement, *, netns_fd: int, control_fd: int, program: bytes) -> None:
    """Confine this process. Takes `netns_fd`, keeps `control_fd` and stdio; all other descriptors are closed.

    `program` is `seccomp.assemble()`, made before the fork. Raises KernelError, BugError: end the process then.
    """
    namespaces.enter_network(netns_fd)
    namespaces.empty_root()
    close_all_but(control_fd)
    limits.apply(memory=confinement.memory, descriptors=confinement.descriptors)
    capabilities.become(confinement.uid)
    capabilities.forbid_new_privileges()
    seccomp.install(program)


def close_all_but(control_fd: int) -> None:
    """Close every descriptor above stdio but this one."""
    highest = 2**31 - 1
    os.closerange(3, control_fd)
    os.closerange(max(3, control_fd + 1), highest)
