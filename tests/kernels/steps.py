"""What runs on each kernel, in order, and for how many seconds of the guest's time at most."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from sidestep.steering import locked_memory

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = ".venv/bin/python"
DOCTOR = (".venv/bin/sidestep", "doctor", "--output", "json")


@dataclass(frozen=True)
class Step:
    """A row of the table: the command's arguments, and how its output is counted (`tests.kernels.report.COUNTED`)."""

    name: str
    """By which a run chooses it."""
    title: str
    within: float
    command: tuple[str, ...]
    counted: str = "tests"
    confined: bool = False
    """Whether it runs with the DaemonSet's capabilities instead of root's."""
    cluster: bool = False
    """Whether it boots a Kubernetes node, whose parts `tests.kernels.node` puts on the guest's disk.

    It runs only when a run names it: Kubernetes has to be built for it.
    """


def _tests(name: str, title: str, within: float, *paths: str, marked: str = "") -> Step:
    # The tests' own timeouts are meant for a machine that is not emulated.
    options = ["-q", "-p", "no:cacheprovider", "--color=no", "--timeout=900", *(["-m", marked] if marked else [])]
    shown = ", ".join(f"`{path}`" for path in paths)
    return Step(name, f"{title} ({shown})", within, (PYTHON, "-m", "pytest", *options, *paths))


NODE = (
    "tests/e2e/test_unified_cgroups.py",
    "tests/e2e/test_cluster.py",
    "tests/e2e/test_intercept.py",
    "tests/e2e/test_uninstall.py",
)
"""The node itself, the daemon on it, intercepts of pods that come and go, and that nothing of it stays.

The node's programs and pods write to the disk: the guest's memory holds neither them nor their images.
"""
_GUESTS = ("env", "SIDESTEP_E2E_CACHE=/mnt/cache", "TMPDIR=/mnt/tmp")


def _node(name: str, title: str, within: float, *paths: str) -> Step:
    step = _tests(name, title, within, *paths)
    return replace(step, command=(*_GUESTS, *step.command), cluster=True)


MATCHING = ("tests/system/test_matching.py", "tests/system/test_grpc.py")
"""Matching is Python and the same on every kernel; what runs is marked, and is about sockets as much as about filters:
TLS, HTTP/1, HTTP/2 and gRPC, an app on one address family or on loopback alone, one that comes later."""


STEPS = (
    Step("doctor", "`sidestep doctor`", 300, DOCTOR, "checks"),
    Step("daemonset", "the same with the DaemonSet's capabilities", 300, DOCTOR, "checks", confined=True),
    Step("demo", "`make demo`", 900, (PYTHON, "-m", "tests.demo"), "statements"),
    _tests("steering", "steering", 1800, "tests/privileged/steering"),
    _tests("netns", "namespaces", 1800, "tests/privileged/netns"),
    _tests("clients", "client addresses", 1800, "tests/system/test_client_address.py"),
    _tests("udp", "UDP", 1800, "tests/system/test_udp.py"),
    _tests("ids", "the lock-up of an IDS", 1800, "tests/privileged/ids"),
    _tests("matching", "matching, a selection", 3600, *MATCHING, marked="kernels"),
    _tests("cgroups", "cgroup version 2 alone", 2400, "tests/system/test_unified_cgroups.py"),
    _node("node", "a Kubernetes node with cgroup version 2 alone", 5400, *NODE),
)


def named(names: str) -> list[Step]:
    """The steps of a list that is separated by commas; when it is empty all but those with a cluster.

    Raises ValueError.
    """
    wanted = names.split(",") if names else [step.name for step in STEPS if not step.cluster]
    if unknown := set(wanted) - {step.name for step in STEPS}:
        raise ValueError(f"no such step: {', '.join(sorted(unknown))}")
    return [step for step in STEPS if step.name in wanted]


def capabilities(release: str, deploy: Path = REPOSITORY / "deploy") -> list[str]:
    """What the DaemonSet adds on a node with that kernel, which is more where the patch for Linux 5.10 is needed."""
    documents = yaml.safe_load_all((deploy / "daemonset.yaml").read_text())
    [daemonset] = [each for each in documents if each and each["kind"] == "DaemonSet"]
    found = list(daemonset["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"]["add"])
    if locked_memory.kernel_version(release) < locked_memory.FIRST_UNCHARGED:
        found += [change["value"] for change in json.loads((deploy / "patches/linux-5.10.json").read_text())]
    return found


def confine(command: tuple[str, ...], release: str) -> list[str]:
    """The command with the capabilities that the DaemonSet has on a node with that kernel, and no others."""
    bounding = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities(release))])
    return ["setpriv", "--inh-caps=-all", f"--bounding-set={bounding}", *command]
