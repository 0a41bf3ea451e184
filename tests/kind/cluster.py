"""The kind cluster: two nodes, made by the script that `make kind` runs, and what tests do with them."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.debian import cache
from tests.e2e import releases
from tests.e2e.cluster import Cluster, Pod
from tests.e2e.product import documents_for
from tests.harness.waiting import until
from tests.kind import box as boxes
from tests.kind.parts import Parts

NAME = "sidestep"
CONTROL_PLANE, WORKER = f"{NAME}-control-plane", f"{NAME}-worker"
NODES = (CONTROL_PLANE, WORKER)
IMAGE = "localhost/sidestep-kind/node:latest"
PODS, SERVICES = "10.244.0.0/16", "10.96.0.0/16"

BOOT = 480.0
"""Seconds that `deploy/kind.sh` may take on a busy machine; 100 on an idle one."""


class KindCluster(Cluster):
    """Commands run on the laptop: they reach the API server by the port that kind publishes."""

    def __init__(self, box: boxes.Box, folder: Path) -> None:
        self.box = self.node = box
        self.folder = folder
        self.programs = box.parts.programs
        self.release = releases.of(self.programs)
        (folder / "home").mkdir(parents=True)

    def kubeconfig(self, user: str) -> Path:
        """The kubeconfig of the administrator or of a developer."""
        return self.box.shared / ("kubeconfig" if user == "admin" else f"{user}.kubeconfig")

    def create(self) -> None:
        """Make the cluster with Sidestep in it."""
        begin = time.monotonic()
        shared = self.box.shared
        (shared / "daemonset.yaml").write_text(yaml.safe_dump_all(documents_for(self.release)))
        words = ["podman", "import", "-q"]
        changes = ('ENTRYPOINT ["/usr/local/bin/begin", "/sbin/init"]', "STOPSIGNAL SIGRTMIN+3", "ENV container=docker")
        words += [word for change in changes for word in ("--change", change)]
        self.box.step("importing the nodes' image", *words, "/parts/node.tar", IMAGE, within=120)
        self.install()
        self._settle()
        cache.say(f"the cluster is up after {time.monotonic() - begin:.0f} s")

    def install(self) -> None:
        """`make kind`: a cluster if there is none, Sidestep's image and the app's, the manifest, the daemons."""
        options = ["--name", NAME, "--node-image", IMAGE, "--manifest", "/shared/daemonset.yaml"]
        options += [word for path in self.box.parts.product for word in ("--archive", f"/archives/{path.name}")]
        self.box.step("running deploy/kind.sh", "bash", "/repository/deploy/kind.sh", *options, within=BOOT)

    def _settle(self) -> None:
        """What the tests want beyond what the script makes: pods on both nodes, ways to pods and services, no DNS."""
        self.kubectl("taint", "node", CONTROL_PLANE, "node-role.kubernetes.io/master-")
        # Its image is not there; no test asks for a name.
        self.kubectl("delete", "deployment", "coredns", "-n", "kube-system")
        for name in NODES:
            node = self.get("node", name)
            address = next(one["address"] for one in node["status"]["addresses"] if one["type"] == "InternalIP")
            self.box.run("ip", "route", "replace", node["spec"]["podCIDR"], "via", address)
        self.box.run("ip", "route", "replace", SERVICES, "via", address)

    def user(self, name: str) -> None:
        """Make a developer: a client certificate of the cluster's authority."""
        words = ["kubeadm", "alpha", "kubeconfig", "user", "--client-name", name, "--config", "/kind/kubeadm.conf"]
        printed = self.on(CONTROL_PLANE, *words)
        made = yaml.safe_load(printed[printed.index("apiVersion:") :])  # after its warnings
        ours = yaml.safe_load(self.kubeconfig("admin").read_text())
        made["clusters"][0]["cluster"]["server"] = ours["clusters"][0]["cluster"]["server"]
        self.kubeconfig(name).write_text(yaml.safe_dump(made))

    def environment(self, user: str = "admin") -> dict[str, str]:
        return {
            "KUBECONFIG": str(self.kubeconfig(user)),
            "HOME": str(self.folder / "home"),
            "PATH": f"{self.programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }

    # ---- nodes

    def keep_logs(self) -> None:
        """Put the journals of the nodes beside the other logs, for a failure."""
        for node in NODES:
            with contextlib.suppress(subprocess.SubprocessError):  # a node that is stopped has none to give
                (self.box.logs / f"{node}.log").write_text(self.on(node, "journalctl", "--no-pager"))

    def on(self, node: str, *words: str, within: float = 60.0) -> str:
        """Run a tool on a node."""
        return self.box.run("podman", "exec", node, *words, within=within)

    def ready(self, node: str) -> bool:
        """Whether the control plane has the node for ready."""
        conditions = self.get("node", node)["status"]["conditions"]
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def wait_ready(self, node: str, ready: bool, *, within: float) -> None:
        """Wait until the control plane has it for ready, or does not any more."""
        what = f"{node} to be {'ready' if ready else 'gone'}"
        until(lambda: self.ready(node) == ready, within=within, every=0.5, what=what)

    def frozen(self, node: str) -> contextlib.AbstractContextManager[None]:
        """A node all of whose processes stand still; its network is silent."""
        return _frozen(self, node)

    def stop(self, node: str) -> None:
        """A node is gone from one moment to the next, as by a power cut."""
        self.box.run("podman", "kill", "--signal", "KILL", node)

    def node_of(self, pod: Pod) -> str:
        """Where a pod runs."""
        found: str = self.get("pod", pod.name, namespace=pod.namespace)["spec"]["nodeName"]
        return found

    def by_node(self, pods: list[Pod]) -> dict[str, list[Pod]]:
        """Pods, by the node they run on."""
        found: dict[str, list[Pod]] = {name: [] for name in NODES}
        for pod in pods:
            found[self.node_of(pod)].append(pod)
        return found


@contextlib.contextmanager
def _frozen(cluster: KindCluster, node: str) -> Iterator[None]:
    cluster.box.run("podman", "pause", node)
    try:
        yield
    finally:
        cluster.box.run("podman", "unpause", node)


@contextlib.contextmanager
def kind(folder: Path, parts: Parts) -> Iterator[KindCluster]:
    """A cluster made of these parts. It is gone afterwards, whatever happened."""
    with boxes.box(folder, parts) as box:
        running = KindCluster(box, folder / "cluster")
        running.create()
        yield running
