"""Sidestep on the cluster: installed by the repository's own manifest, used from the laptop by its command line."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.debian.cache import REPOSITORY
from tests.e2e import older
from tests.e2e.cluster import Cluster, Pod
from tests.e2e.releases import Release
from tests.e2e.shop import LISTENERS
from tests.harness import kernel
from tests.harness.authority import Authority
from tests.harness.cli import Intercept, Result
from tests.harness.namespaces import run
from tests.harness.processes import Process, started
from tests.harness.waiting import SLACK, until
from tests.harness.warm import SIDESTEP

NAMESPACE = "sidestep"
DAEMON = "app.kubernetes.io/component=node"
MANIFEST = REPOSITORY / "deploy" / "daemonset.yaml"
INSPECTION = REPOSITORY / "deploy" / "inspection.yaml"
_numbers = itertools.count(1)


def documents(manifest: Path = MANIFEST) -> list[dict[str, Any]]:
    """deploy/daemonset.yaml, or another manifest, as it is."""
    return [one for one in yaml.safe_load_all(manifest.read_text()) if one]


def documents_for(release: Release, manifest: Path = MANIFEST) -> list[dict[str, Any]]:
    """The same, converted where the cluster's version is older than users' may be."""
    return documents(manifest) if release.supported else older.for_1_20(documents(manifest))


class Product:
    """The installation."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder

    def install(self, *, user: str, namespace: str) -> None:
        """`kubectl apply`, rights for a user and a namespace, and wait for the daemon."""
        self.cluster.apply(*documents_for(self.cluster.release))
        self.grant(user, namespace)
        self.cluster.wait_rollout("daemonset/sidestep-node", NAMESPACE)

    def uninstall(self) -> None:
        """`kubectl delete`, and wait until nothing is left of it."""
        text = yaml.safe_dump_all(documents_for(self.cluster.release))
        self.cluster.kubectl("delete", "-f", "-", "--timeout=120s", stdin=text, within=130)

    @contextlib.contextmanager
    def inspection(self) -> Iterator[None]:
        """deploy/inspection.yaml, applied; deleted at the end, with every policy, and gone then."""
        text = yaml.safe_dump_all(documents_for(self.cluster.release, INSPECTION))
        self.cluster.kubectl("apply", "-f", "-", stdin=text)
        try:
            for kind in ("inspectionpolicies", "clusterinspectionpolicies", "captures", "inspections"):
                words = ["--for=condition=Established", f"crd/{kind}.sidestep.dev", f"--timeout={30 * SLACK:.0f}s"]
                self.cluster.kubectl("wait", *words, within=35)
            yield
        finally:
            self.cluster.kubectl("delete", "-f", "-", "--timeout=60s", stdin=text, within=70)

    @contextlib.contextmanager
    def session_role(self, role: str, user: str, namespace: str) -> Iterator[None]:
        """This ClusterRole, in a namespace, and the way to the daemons, for a user who has no other right."""
        bindings = ((f"--clusterrole={role}", namespace), ("--role=sidestep-tunnel", NAMESPACE))
        for each, where in bindings:
            self.cluster.kubectl("create", "rolebinding", role, each, f"--user={user}", "-n", where)
        try:
            yield
        finally:
            for _, where in bindings:
                self.cluster.kubectl("delete", "rolebinding", role, "-n", where)

    def grant(self, user: str, namespace: str) -> None:
        """What the manifest's comments tell an administrator to do for a developer, and for a namespace's Secrets."""
        bindings = (
            (
                "sidestep-secrets",
                "--clusterrole=sidestep-secrets",
                "--serviceaccount=sidestep:sidestep-node",
                namespace,
            ),
            (f"sidestep-{user}", "--clusterrole=sidestep-developer", f"--user={user}", namespace),
            (f"sidestep-{user}", "--role=sidestep-tunnel", f"--user={user}", NAMESPACE),
        )
        for name, role, subject, where in bindings:
            done = self.cluster.kubectl_result("create", "rolebinding", name, role, subject, "-n", where)
            assert done.code == 0 or "already exists" in done.stderr, done.stderr

    def daemon(self) -> Pod:
        """The daemon's pod."""
        return self.cluster.wait_pods(NAMESPACE, DAEMON, 1)[0]

    def process(self, daemon: Pod) -> int:
        """The daemon's process, as seen from outside of the node: the oldest of its container's."""
        found = {}
        for pid in self.cluster.processes(daemon):
            with contextlib.suppress(OSError):  # it has just ended
                if b"sidestep" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found[pid] = started(pid)
        return min(found, key=lambda pid: found[pid])

    def log(self, *, lines: int = 200) -> str:
        """What the daemon said, the one before it included."""
        found = ""
        for previous in ("true", "false"):
            words = ["logs", "-n", NAMESPACE, "-l", DAEMON, f"--tail={lines}", f"--previous={previous}"]
            found += self.cluster.kubectl_result(*words).stdout
        return found

    # ---- the node

    def steering(self, pod: Pod) -> kernel.Programs:
        """The eBPF objects that hang on a pod's network namespace."""
        return kernel.programs(self.cluster.netns_inode(pod))

    def listeners(self, pod: Pod) -> frozenset[str]:
        """The sockets that listen in a pod."""
        words = ["nsenter", f"--target={self.cluster.processes(pod)[0]}", "--net", "ss", "-Hlntu"]
        return frozenset(" ".join([line.split()[0], line.split()[4]]) for line in run(*words).splitlines())

    def quiet(self, pods: Sequence[Pod]) -> None:
        """Wait until nothing of ours is in these pods of the shop any more: no link, and no listener but the app's."""
        for pod in pods:
            until(
                lambda pod=pod: not self.steering(pod).links and self.listeners(pod) == LISTENERS,
                within=45,
                every=0.5,
                what=lambda pod=pod: f"{pod.name} to be released: {self.steering(pod)}, {self.listeners(pod)}",
            )

    # ---- the laptop

    def run(self, *words: str | Path, user: str = "ada", within: float = 30.0) -> Result:
        """Run a command of the command line to its end. `within` is seconds on an idle machine."""
        done = subprocess.run(
            self.cluster.command(SIDESTEP, *words, user=user),
            capture_output=True,
            text=True,
            timeout=within * SLACK,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def intercept(
        self,
        workload: str,
        *options: str | Path,
        port: str,
        pods: int | None,
        namespace: str = "shop",
        user: str = "ada",
        kind: str = "intercept",
        within: float = 20.0,
    ) -> Iterator[Intercept]:
        """`sidestep intercept` in the background, active on `pods` pods (None: do not wait)."""
        number = next(_numbers)
        words = [SIDESTEP, kind, workload, "-n", namespace, "--port", port, "--output", "json", *options]
        words += [] if "--name" in options else ["--name", f"e2e-{number}"]
        name = str(words[words.index("--name") + 1])
        stdout = self.folder / f"session-{number}.jsonl"
        command = self.cluster.command(*words, user=user)
        try:
            with Process(command, log=self.folder / f"session-{number}.log", stdout=stdout, patience=10) as process:
                stdout.touch()
                running = Intercept(process)
                if pods is not None:
                    running.wait_active(pods=pods, within=within)
                yield running
        finally:
            # What a session that was killed left behind would be in the next test's way.
            self.cluster.kubectl_result("delete", kind, name, "-n", namespace, "--ignore-not-found", "--wait=false")

    @contextlib.contextmanager
    def handler(self, *, tls: bool = True, name: str = "handler") -> Iterator[int]:
        """A developer's server on the laptop; its port. It names itself in X-Served-By."""
        number = next(_numbers)
        words: list[str | Path] = [sys.executable, "-m", "tests.harness.handler", "--name", name]
        if tls:
            certificate = Authority("Laptop CA").issue("orders.shop.test")
            words += ["--tls", certificate.write(self.folder / f"handler-{number}")]
        log, stdout = self.folder / f"handler-{number}.log", self.folder / f"handler-{number}.txt"
        command = self.cluster.node.laptop.enter(["env", f"PYTHONPATH={REPOSITORY}", *words])
        with Process(command, log=log, stdout=stdout) as process:
            text = until(
                lambda: not process.running or process.output().partition("\n")[0],
                within=20,
                what=lambda: f"the handler\n{process.text()}",
            )
            assert isinstance(text, str), process.text()
            yield int(text)
