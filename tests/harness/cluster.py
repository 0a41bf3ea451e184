"""A cluster without a kubelet.

The API server is the fake one, behind TLS. `sidestep node` runs as a process that finds a service account in its file
system. A pod is a process in a network namespace and in a cgroup with a name as the kubelet gives it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import itertools
import os
import ssl
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml

from tests.harness import cgroups, manifests
from tests.harness.authority import Authority
from tests.harness.fake_api import FakeApi
from tests.harness.namespaces import Netns
from tests.harness.node import Node
from tests.harness.waiting import until

T = TypeVar("T")

NODE = "n1"
NAME = "api.cluster.test"
"""A name of the API server that no resolver knows: only a proxy leads there."""
ADDRESS = "10.96.0.1"
"""An address of the API server that leads nowhere, as a Service's does outside of its cluster."""

_numbers = itertools.count(1)


class ApiServer:
    """The fake API server in a thread of its own, with TLS unless `tls` is False."""

    def __init__(self, folder: Path, *, tls: bool = True) -> None:
        self.api = FakeApi()
        self.loop = asyncio.new_event_loop()
        self.ca = folder / "api.crt"
        authority = Authority("Cluster")
        self.ca.write_bytes(authority.pem)
        if tls:
            issued = authority.issue(NAME, "kubernetes", ips=["127.0.0.1", "127.0.0.77", ADDRESS])
            identity = issued.write(folder / "api")
            self.api.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.api.tls.load_cert_chain(identity / "tls.crt", identity / "tls.key")
        self.tls = self.api.tls
        self._thread = threading.Thread(target=self.loop.run_forever, name="API server")
        self._thread.start()
        self.do(self.api.start())

    def do(self, coroutine: Coroutine[Any, Any, T], *, within: float = 20.0) -> T:
        """Run a coroutine in the server's thread; its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(within)

    def put(self, *documents: manifests.Document) -> None:
        """Create or replace objects; each names its apiVersion and kind."""
        for document in documents:
            version = document["apiVersion"]
            group = f"/api/{version}" if "/" not in version else f"/apis/{version}"
            self.do(self.api.put(group, f"{document['kind'].lower()}s", document))

    def kubeconfig(self, path: Path, *, user: Mapping[str, Any] | None = None, **cluster: str) -> Path:
        """Write a kubeconfig for namespace `shop`; `cluster` adds to the address and the CA, or replaces them."""
        server = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.api.port}"
        ca = base64.b64encode(self.ca.read_bytes()).decode()
        settings = {"server": server, **({"certificate-authority-data": ca} if self.tls else {}), **cluster}
        value = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "ada", "namespace": "shop"}}],
            "clusters": [{"name": "c", "cluster": settings}],
            "users": [{"name": "ada", "user": dict(user or {"token": "let-me-in"})}],
        }
        path.write_text(yaml.safe_dump(value))
        return path

    def close(self) -> None:
        """Stop the server and its thread."""
        self.do(self.api.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


@contextlib.contextmanager
def api_server(folder: Path, *, tls: bool = True) -> Iterator[ApiServer]:
    """An API server that knows the node and namespace `shop`."""
    folder.mkdir(parents=True, exist_ok=True)
    server = ApiServer(folder, tls=tls)
    try:
        server.put(
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}},
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
        )
        yield server
    finally:
        server.close()


class ClusterNode(Node):
    """A daemon that finds its API server as in a pod: by two variables and a service account below /var/run.

    It has a mount namespace of its own with an empty /run, where process 1, whose network namespace is the node's, is
    represented by its own: tests may run where process 1 belongs to another user namespace. `address` is where it is
    told that the API server is. Its ports are those of a pod, but in the network namespace of the tests, so that there
    is only one of them at a time on a machine: others wait for its `clean`.
    """

    _ONLY_ONE = Path(tempfile.gettempdir()) / "sidestep-test-cluster-node.lock"

    _SCRIPT = """
        mount -t tmpfs none /run
        mkdir -p "$1" /run/init/ns && cp "$0"/* "$1" && touch /run/init/ns/net
        mount --bind /proc/self/ns/net /run/init/ns/net
        mount --rbind /run/init /proc/1
        shift
        exec "$@"
    """

    def __init__(self, folder: Path, server: ApiServer, *, address: tuple[str, int] | None = None) -> None:
        super().__init__(folder)
        self._account = folder / "account"
        self._account.mkdir()
        (self._account / "token").write_text("the daemon's")
        (self._account / "namespace").write_text("sidestep")
        (self._account / "ca.crt").write_bytes(server.ca.read_bytes())
        host, port = address or ("127.0.0.1", server.api.port)
        self.environment = {
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": str(port),
            "POD_NAMESPACE": "sidestep",
            "POD_NAME": f"sidestep-{NODE}",
        }

        self._turn: IO[bytes] | None = None

    def wait_turn(self) -> None:
        """Wait until the daemon of no other test runs; the test's own deadline is that of the wait."""
        if self._turn is None:
            self._turn = os.fdopen(os.open(self._ONLY_ONE, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb")
            fcntl.flock(self._turn, fcntl.LOCK_EX)  # whoever came first is next

    def start(self) -> None:
        """Start the daemon, once that of no other test runs, and wait until it answers."""
        self.wait_turn()
        super().start()

    def clean(self) -> None:
        """End the daemon and whatever of its children outlived it; the next test may have one."""
        try:
            super().clean()
        finally:
            if self._turn is not None:
                self._turn.close()
                self._turn = None

    def command(self) -> list[str | Path]:
        """The command line that starts it."""
        place = "/var/run/secrets/kubernetes.io/serviceaccount"
        inside: list[str | Path] = ["unshare", "--mount", "sh", "-euc", self._SCRIPT, self._account, place]
        return [*inside, self.program, "node", "--name", NODE, "--socket", self.socket]


@contextlib.contextmanager
def cluster_node(
    folder: Path, server: ApiServer, *, address: tuple[str, int] | None = None, start: bool = True
) -> Iterator[ClusterNode]:
    """A daemon of the cluster."""
    folder.mkdir(parents=True, exist_ok=True)
    daemon = ClusterNode(folder, server, address=address)
    try:
        if start:
            daemon.start()
        yield daemon
    finally:
        daemon.clean()


@contextlib.contextmanager
def residents(spaces: Mapping[str, Netns]) -> Iterator[dict[str, tuple[str, str]]]:
    """A process for each pod, by name: in its namespace and in a cgroup as of a container; (uid, container's id)."""
    top = cgroups.mount() / f"sidestep-test-{os.getpid()}-kubepods-{next(_numbers)}"
    made: list[Path] = []
    running: list[subprocess.Popen[bytes]] = []
    found = {}
    try:
        for name, netns in spaces.items():
            uid, container = str(uuid.uuid4()), uuid.uuid4().hex * 2
            folder = top / f"pod{uid}" / container
            folder.mkdir(parents=True)
            made += [folder, folder.parent]
            running.append(subprocess.Popen(netns.enter(cgroups.inside(folder, ["sleep", "infinity"]))))
            until(
                lambda folder=folder: (folder / "cgroup.procs").read_text(), within=10, what="a process in its cgroup"
            )
            found[name] = (uid, container)
        yield found
    finally:
        for process in running:
            process.kill()
            process.wait(10)
        for folder in [*made, top]:
            until(lambda folder=folder: _removed(folder), within=10, what=f"{folder} to be empty")


def _removed(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        try:
            folder.rmdir()
        except OSError:
            return False
    return True


def pod(
    name: str, identity: tuple[str, str], ips: Sequence[str], ports: Sequence[manifests.Document], **metadata: Any
) -> manifests.Document:
    """A running Pod of namespace `shop` on the node; `identity` is that of its resident."""
    uid, container = identity
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": uid, **metadata},
        "spec": {"nodeName": NODE, "containers": [{"name": "app", "ports": list(ports)}]},
        "status": {
            "phase": "Running",
            "podIP": ips[0],
            "podIPs": [{"ip": ip} for ip in ips],
            "containerStatuses": [
                {"name": "app", "containerID": f"containerd://{container}", "state": {"running": {"startedAt": "x"}}}
            ],
        },
    }
