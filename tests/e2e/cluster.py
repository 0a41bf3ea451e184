"""The running cluster, and what tests do with it: kubectl as somebody, apply, wait, exec, port-forward, curl."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.debian import cache
from tests.e2e import components, images, machine, releases
from tests.harness.cli import Result
from tests.harness.curl import Answer, curl
from tests.harness.processes import Process
from tests.harness.waiting import SLACK, until

BOOT = 120.0
"""Seconds that the whole node may take to become ready."""


@dataclass(frozen=True)
class Pod:
    """What tests look at in a pod."""

    name: str
    namespace: str
    uid: str
    ip: str
    phase: str
    ready: bool
    ending: bool
    restarts: int

    @staticmethod
    def of(document: Mapping[str, Any]) -> Pod:
        metadata, status = document["metadata"], document.get("status", {})
        conditions = {one["type"]: one["status"] for one in status.get("conditions", [])}
        return Pod(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            ip=status.get("podIP", ""),
            phase=status.get("phase", ""),
            ready=conditions.get("Ready") == "True",
            ending="deletionTimestamp" in metadata,
            restarts=sum(one["restartCount"] for one in status.get("containerStatuses", [])),
        )


class KubectlError(AssertionError):
    """kubectl refused or failed."""


class Cluster:
    """A single-node cluster. Commands run on the laptop: they reach the API server and the pods by network."""

    def __init__(self, node: machine.Machine, folder: Path, release: releases.Release) -> None:
        self.node = node
        self.release = release
        self.folder = folder
        (folder / "home").mkdir(parents=True)
        self.programs = release.programs
        self.settings = components.Settings(folder / "settings", snapshotter=_snapshotter(folder), release=release)
        self._processes: dict[str, machine.NodeProcess] = {}

    # ---- the node's programs

    def boot(self, archives: Mapping[str, Path]) -> None:
        """Start everything, import the images, wait until the node is ready."""
        begin = time.monotonic()
        self.settings.write()
        self._start("etcd", components.etcd())
        self._start("containerd", components.containerd(self.settings))
        self._start("apiserver", components.apiserver(self.settings))
        with ThreadPoolExecutor(2) as pool:
            importing = [pool.submit(self.import_image, path) for path in archives.values()]
            self._wait("the API server", lambda: self.kubectl_result("get", "--raw=/readyz").code == 0)
            self._start("controller-manager", components.controller_manager(self.settings))
            self._start("scheduler", components.scheduler(self.settings))
            for one in importing:
                one.result()
        self._start("kubelet", components.kubelet(self.settings, cgroup=self.node.cgroup))
        self._wait("the node to be ready", self._node_ready)
        self._wait("service accounts", lambda: self.try_get("serviceaccount", "default", namespace="default"))
        cache.say(f"the cluster is up after {time.monotonic() - begin:.0f} s")

    def _start(self, name: str, command: Sequence[str]) -> None:
        self._processes[name] = self.node.spawn(name, *command)

    def _wait(self, what: str, condition: Any) -> None:
        def alive_and_true() -> Any:
            for name, process in self._processes.items():
                assert process.running, f"{name} ended while waiting for {what}:\n{cache.tail(process.log)}"
            return condition()

        until(alive_and_true, within=BOOT, every=0.2, what=lambda: f"{what}\n{self.log_tails()}")

    def _node_ready(self) -> bool:
        node = self.try_get("node", machine.NODE_NAME)
        conditions = {} if node is None else {one["type"]: one["status"] for one in node["status"]["conditions"]}
        return conditions.get("Ready") == "True"

    def import_image(self, archive: Path) -> None:
        """Give containerd an image."""
        until(self._containerd_answers, within=30, what="containerd", every=0.1)
        self.node.run("ctr", "-n", "k8s.io", "image", "import", "--snapshotter", self.settings.snapshotter, archive,
                      within=240)  # fmt: skip

    def _containerd_answers(self) -> bool:
        command = self.node.enter(["ctr", "version"])
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0

    def stop_program(self, name: str) -> None:
        """End one of the node's programs, e.g. "apiserver"."""
        self._processes.pop(name).stop()

    def start_apiserver(self) -> None:
        """Start the API server again and wait until it answers."""
        self._start("apiserver", components.apiserver(self.settings))
        self._wait("the API server", lambda: self.kubectl_result("get", "--raw=/readyz").code == 0)

    def log_tails(self) -> str:
        """The last lines of every program's log."""
        return "\n".join(
            f"--- {path.stem}\n{cache.tail(path, lines=12)}" for path in sorted(self.node.logs.glob("*.log"))
        )

    # ---- kubectl

    def environment(self, user: str = "admin") -> dict[str, str]:
        """What a command of `user` on the laptop needs to find the cluster."""
        return {
            "KUBECONFIG": str(self.settings.kubeconfig(user)),
            "HOME": str(self.folder / "home"),
            "PATH": f"{self.programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }

    def command(self, *words: str | Path, user: str = "admin") -> list[str]:
        """The argument vector that runs `words` on the laptop as `user`."""
        settings = [f"{name}={value}" for name, value in self.environment(user).items()]
        return self.node.laptop.enter(["env", *settings, *words])

    def kubectl_result(
        self, *words: str | Path, user: str = "admin", stdin: str | None = None, within: float = 30.0
    ) -> Result:
        """Run kubectl, whatever comes of it. `within` is seconds on an idle machine."""
        within *= SLACK
        done = subprocess.run(
            self.command("kubectl", f"--request-timeout={within:.0f}s", *words, user=user),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=within + 15,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def kubectl(self, *words: str | Path, user: str = "admin", stdin: str | None = None, within: float = 30.0) -> str:
        """Run kubectl; what it printed. Raises KubectlError."""
        result = self.kubectl_result(*words, user=user, stdin=stdin, within=within)
        if result.code != 0:
            raise KubectlError(f"kubectl {' '.join(map(str, words))}: {result.stderr}")
        return result.stdout

    def apply(self, *documents: Mapping[str, Any], namespace: str | None = None) -> None:
        """`kubectl apply` of documents."""
        where = ["-n", namespace] if namespace else []
        self.kubectl("apply", *where, "-f", "-", stdin=yaml.safe_dump_all(documents))

    def delete(self, kind: str, name: str, *, namespace: str | None = None, within: float = 60.0) -> None:
        """`kubectl delete`, and wait until it is gone."""
        where = ["-n", namespace] if namespace else []
        self.kubectl("delete", kind, name, "--wait=false", "--ignore-not-found", *where)
        until(
            lambda: self.try_get(kind, name, namespace=namespace) is None,
            within=within,
            every=0.3,
            what=lambda: f"{kind} {name} to be gone: {self.try_get(kind, name, namespace=namespace)}",
        )

    def get(self, kind: str, name: str | None = None, *, namespace: str | None = None, selector: str = "") -> Any:
        """An object, or the list of a kind's objects in all namespaces or one."""
        words = ["get", kind, "-o", "json"]
        words += [name] if name else []
        words += ["-l", selector] if selector else []
        words += ["-n", namespace] if namespace else [] if name else ["-A"]
        found = json.loads(self.kubectl(*words))
        return found if name else found["items"]

    def try_get(self, kind: str, name: str, *, namespace: str | None = None) -> Any | None:
        """An object, or None."""
        with contextlib.suppress(KubectlError):
            return self.get(kind, name, namespace=namespace)
        return None

    def pods(self, namespace: str, selector: str = "") -> list[Pod]:
        """The pods of a namespace that are not on their way out, by name."""
        pods = [Pod.of(one) for one in self.get("pods", namespace=namespace, selector=selector)]
        return sorted((pod for pod in pods if not pod.ending), key=lambda pod: pod.name)

    def wait_pods(self, namespace: str, selector: str, count: int, *, within: float = 60.0) -> list[Pod]:
        """Wait until exactly `count` pods are there, all ready, none ending; returns them."""

        def settled() -> list[Pod] | None:
            pods = [Pod.of(one) for one in self.get("pods", namespace=namespace, selector=selector)]
            right = len(pods) == count and all(pod.ready and not pod.ending for pod in pods)
            return sorted(pods, key=lambda pod: pod.name) if right else None

        what = f"{count} ready pods {selector} in {namespace}"
        return until(settled, within=within, every=0.3, what=lambda: f"{what}\n{self.describe(namespace)}") or []

    def describe(self, namespace: str) -> str:
        """Pods and events of a namespace, for a failure's text."""
        pods = self.kubectl_result("get", "pods", "-n", namespace, "-o", "wide").stdout
        events = self.kubectl_result("get", "events", "-n", namespace, "--sort-by=.lastTimestamp").stdout
        return f"{pods}\n" + "\n".join(events.splitlines()[-25:])

    def wait_rollout(self, workload: str, namespace: str, *, within: float = 90.0) -> None:
        """`kubectl rollout status`. `within` is seconds on an idle machine."""
        words = ["rollout", "status", workload, "-n", namespace, f"--timeout={within * SLACK:.0f}s"]
        result = self.kubectl_result(*words, within=within + 5)
        assert result.code == 0, f"{workload}: {result.stderr}\n{self.describe(namespace)}"

    def events(self, namespace: str, *, about: str = "") -> list[dict[str, Any]]:
        """Events of a namespace, of one object (`name`) if given."""
        found = self.get("events", namespace=namespace)
        return [one for one in found if not about or one["involvedObject"]["name"] == about]

    def exec(self, pod: Pod, *command: str, within: float = 30.0) -> str:
        """`kubectl exec`; what the command printed."""
        return self.kubectl("exec", "-n", pod.namespace, pod.name, "--", *command, within=within)

    @contextlib.contextmanager
    def port_forward(self, target: str, port: int, *, namespace: str, user: str = "admin") -> Iterator[int]:
        """`kubectl port-forward`; the port on the laptop's 127.0.0.1."""
        number = len(list(self.folder.glob("forward-*.log")))
        log = self.folder / f"forward-{number}.log"
        words = ["kubectl", "port-forward", "-n", namespace, target, f":{port}"]
        with Process(self.command(*words, user=user), log=log) as process:
            found = until(
                lambda: re.search(r"127\.0\.0\.1:(\d+)", process.text()) or not process.running,
                within=20,
                what=lambda: f"port-forward\n{process.text()}",
            )
            assert isinstance(found, re.Match), process.text()
            yield int(found[1])

    # ---- traffic

    def curl(
        self,
        url: str,
        *options: str | Path,
        address: str | None = None,
        ca: Path | None = None,
        headers: Sequence[str] = (),
        within: float = 15.0,
    ) -> Answer:
        """curl on the laptop; see `tests.harness.curl`."""
        return curl(self.node.laptop, url, *options, address=address, ca=ca, headers=headers, within=within)

    # ---- the node, as root sees it

    def processes(self, pod: Pod) -> list[int]:
        """The pids, seen from outside of the node, of a pod's own processes: by its UID in their cgroup.

        systemd, where it makes the pods' cgroups, writes the UID with underscores.
        """
        names = (f"pod{pod.uid}", f"pod{pod.uid.replace('-', '_')}")
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    text = (folder / "cgroup").read_text()
                    if any(name in text for name in names):
                        found.append(int(folder.name))
        return sorted(found)

    def netns_inode(self, pod: Pod) -> int:
        """The inode of a pod's network namespace."""
        return Path(f"/proc/{self.processes(pod)[0]}/ns/net").stat().st_ino


def _snapshotter(folder: Path) -> str:
    return "native" if images.storage_driver(folder) == "vfs" else "overlayfs"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with all images, built if need be. It is gone afterwards, whatever happened."""
    # The build of Kubernetes computes, that of the images waits for the network more than it computes.
    built, release = cache.side_by_side(images.images, releases.release)
    shown = [folder, release.programs, cache.folder() / "images"]
    with machine.machine(folder / "node", release.root(), shown=shown, environment=release.environment) as node:
        running = Cluster(node, folder / "cluster", release)
        running.boot(built.archives)
        yield running


def namespaces(*names: str) -> Iterable[dict[str, Any]]:
    """Namespace documents."""
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names]
