"""What this machine lacks for the node daemon, found by trying: `sidestep doctor`.

Each check does once what the daemon does all the time, in a network namespace and a cgroup of its own, which are
removed afterwards, and yields a `Finding`. A check that depends on a failed one is skipped and says so. A check is
essential if the daemon cannot work without it; the others say what their absence costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import platform
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from sidestep.ids import suricata
from sidestep.ids.confinement import landlock_version
from sidestep.kube.access import is_in_cluster
from sidestep.model.errors import ConfigurationError, KernelError, SidestepError
from sidestep.model.finding import Finding
from sidestep.model.pod import Family
from sidestep.netns import Connection, Netns, SocketId, destroy, listening, tcp_listener
from sidestep.node.certificates.swap import ADVICE, swap_devices
from sidestep.node.inspectors.inspectors import Inspectors, version_of
from sidestep.node.proxies.memory_cgroups import MemoryCgroups, own_group
from sidestep.node.proxy_uids import RULES_TESTER, WAF_TESTER
from sidestep.proxy.tls.interpreter import check_ssl
from sidestep.snapshots.waf import Profile
from sidestep.steering import (
    ClientNames,
    CompiledProgram,
    EgressConfig,
    EgressSteering,
    Steering,
    compile_egress,
    locked_memory,
)
from sidestep.steering import compile_peername as compile_for_getpeername
from sidestep.steering import compile_program as compile_for_lookup

CAPABILITIES = {
    "DAC_READ_SEARCH": 2, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8, "NET_ADMIN": 12, "NET_RAW": 13,
    "SYS_PTRACE": 19, "SYS_ADMIN": 21, "PERFMON": 38, "BPF": 39,
}  # fmt: skip
"""Numbers of the capabilities that deploy/daemonset.yaml asks for (linux/capability.h)."""

ESSENTIAL_CAPABILITIES = ("NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "SETUID", "SETGID", "SETPCAP", "BPF")
MINIMUM_KERNEL = (5, 10)
"""Major and minor number of the oldest kernel that is supported (docs/install.md, "What it needs")."""

_CLONE_NEWNET = 0x40000000
_NOBODY = Connection(client=None, client_port=0, family=Family.IPV4, sockid=SocketId(), uid=0)  # type: ignore[arg-type]  # only its socket id is looked at


async def examine() -> list[Finding]:
    """All checks of this machine, in order. Takes about three seconds: three sources are compiled."""
    found = [_root(), _capabilities(Path("/proc/self/status")), _kernel(), _interpreter()]
    program, finding = await _compiled()
    found.append(finding)
    found += await asyncio.to_thread(_in_a_namespace, program)
    found.append(_seccomp())
    found.append(_swap(swap_devices()))
    found.append(_memory())
    found.append(await _client_addresses(program is not None))
    found.append(await _outbound(program is not None))
    found.append(await _suricata())
    found.append(await _firewall())
    return found


def _try(check: str, action: Callable[[], str], *, essential: bool, cost: str) -> Finding:
    """`action` returns what it found, or raises SidestepError or OSError."""
    try:
        return Finding(check, "ok", essential, action())
    except (SidestepError, OSError) as error:
        return Finding(check, "missing", essential, str(error), cost)


def _root() -> Finding:
    uid = os.geteuid()
    if uid == 0:
        return Finding("root", "ok", True, "this is user 0")
    return Finding("root", "missing", True, f"this is user {uid}; run it with sudo", "the node daemon does not start")


def _capabilities(status: Path) -> Finding:
    line = next(each for each in status.read_text().splitlines() if each.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    absent = [name for name, number in CAPABILITIES.items() if not effective >> number & 1]
    needed = [name for name in absent if name in ESSENTIAL_CAPABILITIES]
    if needed:
        cost = "programs cannot be attached to pods, or pods cannot be entered"
        return Finding("capabilities", "missing", True, f"not effective here: {', '.join(needed)}", cost)
    without = f" (not needed everywhere, not here: {', '.join(absent)})" if absent else ""
    return Finding("capabilities", "ok", True, f"all that the daemon needs{without}")


def _kernel() -> Finding:
    release = platform.release()
    if locked_memory.kernel_version(release) < MINIMUM_KERNEL:
        needed = ".".join(str(number) for number in MINIMUM_KERNEL)
        text = f"Linux {release}; {needed} or later is needed"
        return Finding("kernel", "missing", True, text, "ports cannot be steered")
    text = f"Linux {release} {platform.machine()}"
    if locked_memory.is_charged():
        locked_memory.lift()
    if locked_memory.is_charged() and locked_memory.is_limited():
        text += f" ({locked_memory.shortage()})"
    return Finding("kernel", "ok", True, text)


def _interpreter() -> Finding:
    def check() -> str:
        check_ssl()
        return f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}"

    return _try("python", check, essential=True, cost="the node daemon does not start")


async def _compiled() -> tuple[CompiledProgram | None, Finding]:
    began = time.monotonic()
    try:
        program = await compile_for_lookup()
    except SidestepError as error:
        return None, Finding("bcc and headers", "missing", True, str(error), "the program cannot be compiled")
    text = f"the program compiles, in {time.monotonic() - began:.1f} s"
    return program, Finding("bcc and headers", "ok", True, text)


def _in_a_namespace(program: CompiledProgram | None) -> list[Finding]:
    """The checks that need a network namespace to play with."""
    names = ("sk_lookup", "sock_diag", "SOCK_DESTROY")
    with contextlib.ExitStack() as undo:
        try:
            netns = undo.enter_context(_fresh_namespace())
        except (SidestepError, OSError) as error:
            text = f"no network namespace can be made: {error}"
            return [Finding(name, "missing", name != "SOCK_DESTROY", text) for name in names]
        found = []
        if program is None:
            found.append(Finding(names[0], "skipped", True, "the program could not be compiled"))
        else:
            steer = _steering(program, netns)
            found.append(_try(names[0], steer, essential=True, cost="nothing can be intercepted"))
        found.append(
            _try(names[1], lambda: _listening(netns), essential=True, cost="it cannot be seen whether an app listens")
        )
        cost = "--reset-existing does nothing: clients that are connected stay with the app until they reconnect"
        found.append(_try(names[2], lambda: _destroying(netns), essential=False, cost=cost))
        return found


@contextlib.contextmanager
def _fresh_namespace() -> Iterator[Netns]:
    """A network namespace that ends with the block. This thread moves into it and back."""
    with Netns.open("/proc/thread-self/ns/net") as own:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) < 0:
            raise KernelError("unshare", ctypes.get_errno(), doing="making a network namespace")
        try:
            with Netns.open("/proc/thread-self/ns/net") as fresh:
                yield fresh
        finally:
            libc.setns(own.fd, _CLONE_NEWNET)


def _steering(program: CompiledProgram, netns: Netns) -> Callable[[], str]:
    def attach() -> str:
        with Steering.attach(program, netns.fd), tcp_listener(netns, backlog=1) as listener:
            return f"attaches to a network namespace; listeners are {'dual-stack' if listener.family == 10 else 'IPv4'}"

    return attach


def _listening(netns: Netns) -> str:
    listening(netns)
    return "listening sockets of a namespace can be listed"


def _destroying(netns: Netns) -> str:
    destroy(netns, _NOBODY)
    return "connections can be ended from outside"


def _seccomp() -> Finding:
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if actions.exists():
        return Finding("seccomp", "ok", True, "filters are available")
    return Finding("seccomp", "missing", True, f"{actions} is not there", "pod proxies do not start unconfined")


def _swap(devices: tuple[str, ...]) -> Finding:
    if not devices:
        return Finding("swap", "ok", False, "none: private keys stay in memory")
    return Finding("swap", "missing", False, f"the machine swaps to {', '.join(devices[:4])}", ADVICE)


def _memory() -> Finding:
    """Whether proxies in local mode get memory cgroups. In a cluster they are bounded by the container's limit."""
    if is_in_cluster():
        return Finding("memory cgroups", "skipped", False, "the limit of the daemon's container bounds all proxies")

    def make() -> str:
        cgroups = MemoryCgroups.find()
        cgroups.prepare()
        group = cgroups.group(0)
        group.mkdir()
        group.rmdir()
        cgroups.remove_folder()
        return f"in local mode every proxy gets a cgroup (v{cgroups.version}, {cgroups.folder})"

    cost = "a proxy's own memory is limited, what the kernel holds for it is not"
    return _try("memory cgroups", make, essential=False, cost=cost)


async def _client_addresses(compiling: bool) -> Finding:
    async def attaching() -> Callable[[Path], str]:
        programs = await compile_for_getpeername()

        def attach(group: Path) -> str:
            ClientNames.attach(programs, str(group)).close()
            return "getpeername programs attach to cgroups"

        return attach

    cost = "apps see the pod's own address in place of their clients' for what is steered"
    return await _on_a_cgroup("client addresses", attaching, compiling, cost=cost)


async def _outbound(compiling: bool) -> Finding:
    """Whether `egress` of policies can be carried out. What is attached selects no connection."""

    async def attaching() -> Callable[[Path], str]:
        programs = await compile_egress()

        def attach(group: Path) -> str:
            with Netns.open("/proc/self/ns/net") as netns:
                nothing = EgressConfig(steered=(), passed=())
                EgressSteering.attach(programs, str(group), netns.fd, nothing, entries=2).close()
            return "connect programs attach to cgroups"

        return attach

    cost = "connections that pods make cannot be inspected: `egress` of inspection policies has no effect"
    return await _on_a_cgroup("outbound steering", attaching, compiling, cost=cost)


async def _on_a_cgroup(
    check: str, attaching: Callable[[], Awaitable[Callable[[Path], str]]], compiling: bool, *, cost: str
) -> Finding:
    """Compile with `attaching`, and do what it returns with a cgroup of version 2."""
    folder = _cgroup_root(Path("/proc/self/mounts"))
    if folder is None:
        return Finding(check, "missing", False, "cgroup v2 is not mounted", cost)
    if not compiling:
        return Finding(check, "skipped", False, "the program could not be compiled")
    try:
        attach = await attaching()
    except SidestepError as error:
        return Finding(check, "missing", False, str(error), cost)
    try:
        with _cgroup_to_try(folder) as group:
            return _try(check, lambda: f"{attach(group)} (v2 at {folder})", essential=False, cost=cost)
    except ConfigurationError as error:
        return Finding(check, "skipped", False, f"there is no cgroup to try it in: {error}")


async def _suricata() -> Finding:
    """Whether policies may have `ids`: a rule is tested by Suricata, in the lock-up that pods' have."""
    check, cost = "suricata", "inspection policies with `ids` have no IDS; all others work"
    version = await suricata.version()
    if not version:
        return Finding(check, "missing", False, "Suricata is not installed (docs/ids.md)", cost)
    landlock = landlock_version()
    if not landlock:
        return Finding(check, "missing", False, "Landlock is not there: Linux 5.13 or later with `landlock`", cost)
    try:
        checked = await suricata.check("alert http any any -> any any (sid:1;)\n", uid=RULES_TESTER)
    except SidestepError as error:
        return Finding(check, "missing", False, str(error), cost)
    if checked.problem:
        return Finding(check, "missing", False, checked.problem, cost)
    return Finding(check, "ok", False, f"version {version} tests a rule where it is locked in (Landlock {landlock})")


async def _firewall() -> Finding:
    """Whether policies may have `waf`: an inspector is made as those of pods are, and takes rules."""
    check, cost = "firewall", "inspection policies with `waf` have no firewall; all others work"
    said: list[str] = []
    inspectors = Inspectors(said.append)
    try:
        loaded = await inspectors.loaded()
        await inspectors.check(Profile(1, 5, 1, responses=True), uid=WAF_TESTER)
    except SidestepError as error:
        reason = "; ".join(said) or str(error)
        return Finding(check, "missing", False, f"{reason} (docs/waf.md)", cost)
    finally:
        await inspectors.aclose()
    without = f", without {', '.join(map(str, loaded.left_out))} (docs/waf.md)" if loaded.left_out else ""
    rules = f"{sum(each not in loaded.left_out for each in loaded.names)} rules{without}"
    return Finding(check, "ok", False, f"{version_of(loaded)}: {rules}, where they are locked in")


@contextlib.contextmanager
def _cgroup_to_try(root: Path) -> Iterator[Path]:
    """A new cgroup, or this process's own one where none can be made. Raises ConfigurationError when neither is there.

    The daemon attaches to cgroups that exist. It needs no right to make one, and has none in a cluster: the mount is
    read-only, and CAP_DAC_OVERRIDE is missing.
    """
    made = root / f"sidestep-doctor-{os.getpid()}"
    try:
        made.mkdir()
    except OSError:
        yield own_group()
        return
    try:
        yield made
    finally:
        made.rmdir()


def _cgroup_root(mounts: Path) -> Path | None:
    rows = (line.split() for line in mounts.read_text().splitlines())
    return next((Path(row[1]) for row in rows if row[2] == "cgroup2"), None)
