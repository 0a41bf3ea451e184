"""eBPF: compile, load, attach, steer, count; inbound with sk_lookup, outbound with cgroup/connect as well.

`compile_program()`, once per daemon, gives a `CompiledProgram`; `Steering.attach()` loads it with maps of its own for
one pod's network namespace; `steer()`, `unsteer()`, `close_port()` and `open_port()` fill that pod's maps.
`compile_egress()` and `EgressSteering` do the same for what the pod sends. No pin, no BTF, no bcc in this process.
"""

from __future__ import annotations

from sidestep.steering.attachment import Steering
from sidestep.steering.bpf import programs_attached
from sidestep.steering.client_names import ClientNames, PeernamePrograms
from sidestep.steering.compiler import compile_egress, compile_peername, compile_program
from sidestep.steering.egress import EgressPrograms, EgressSteering
from sidestep.steering.egress_layout import EVERYWHERE, NOT_EXTERNAL, EgressConfig, EgressVerdict
from sidestep.steering.layout import Verdict
from sidestep.steering.program import CompiledProgram

__all__ = [
    "compile_program",
    "CompiledProgram",
    "Steering",
    "programs_attached",
    "Verdict",
    "compile_peername",
    "PeernamePrograms",
    "ClientNames",
    "compile_egress",
    "EgressPrograms",
    "EgressSteering",
    "EgressConfig",
    "EgressVerdict",
    "EVERYWHERE",
    "NOT_EXTERNAL",
]
