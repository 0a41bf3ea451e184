"""A pod whose connections are steered, in its cgroup and namespace, and servers in another: what tests of policies
about such connections are made of."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from ipaddress import ip_network

from msgspec.structs import replace

from sidestep.model.egress import Destination, EgressMode, SecretRef
from sidestep.model.inspection import Egress, FailurePolicy, InspectionPolicy, Mode
from sidestep.model.workload import LabelSelector
from sidestep.node.planning.egress import certificates_of, with_credentials
from sidestep.node.planning.inspection import PlannedPolicy
from sidestep.node.records.checking import decode
from sidestep.policy.egress_rows import to_egress_snapshot
from sidestep.policy.inspection_rows import to_snapshot
from tests.harness.authority import Authority
from tests.harness.cgroups import cgroup, inside
from tests.harness.namespaces import pod_namespace
from tests.harness.nginx import nginx
from tests.harness.tls_peers import s_server
from tests.privileged.node.rig import compiled_egress, pod_of, rig

TLS, OTHER, PLAIN, CLEAR_H2 = 443, 8443, 80, 8082
NAMES = ("api.test", "paste.test")


HERE = (ip_network("10.99.0.0/16"), ip_network("fd99::/16"))
"""The network of the tests."""


def policy(*rules, fail=False, destinations=None, opens=EgressMode.OBSERVE, issuer="", trust="", sample=0.0, **fields):
    """About everything in the network of the tests. `issuer` and `trust` are names of Secrets (`Rig.secrets`)."""
    chosen = destinations or (Destination("net", opens, networks=HERE),)
    failing = FailurePolicy.FAIL if fail else FailurePolicy.IGNORE
    mode, name = fields.get("mode", Mode.ENFORCE), fields.get("name", "out")
    egress = Egress(
        chosen,
        tuple(rules),
        failing,
        issuer=SecretRef("shop", issuer) if issuer else None,
        trust=SecretRef("shop", trust) if trust else None,
        sample_percent=sample,
    )
    made = InspectionPolicy(name, "shop", pod_selector=LabelSelector(), mode=mode, egress=egress)
    return PlannedPolicy(made, to_snapshot(made), 1, egress=to_egress_snapshot(made))


class Records:
    """A log that keeps what it gets."""

    wanted = True

    def __init__(self):
        self.made = []

    def take(self, pod, message, rules):
        self.made += [decode(each) for each in message.records]

    def missed(self, pod, ports, absence):
        pass

    def take_alert(self, pod, make):
        pass

    def ids_ended(self):
        pass


PROGRAMMED = 15.0
"""Seconds until a pod's first proxy has its policies."""


class Pod:
    """A pod whose connections are steered, and the servers that it connects to."""

    def __init__(self, space, folder, some, key, authority, web):
        self.space, self.folder, self.some, self.key = space, folder, some, key
        self.authority, self.web = authority, web

    @property
    def target(self):
        return self.some.target(self.key)

    async def program(self, *policies):
        self.some.policies = policies
        self.some.secrets.read(certificates_of(self.key, policies))
        self.some.plan()
        egress = with_credentials(self.key, policies, self.some.secrets.facts)
        reconciler = self.some.reconciler
        await self.some.until(
            lambda: reconciler.target(self.key) and self.target.egress.inspects(egress), within=PROGRAMMED
        )

    def run(self, *command):
        """A command of the pod's: in its cgroup and its namespace."""
        words = inside(self.folder, self.space.pod.enter(command))
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=60, check=False
        )

    def curl(self, name, *options, port=TLS, scheme="https", address=None, path=""):
        address = address or self.space.client_ip
        resolve = f"{name}:{port}:{address if ':' not in address else f'[{address}]'}"
        return self.run(
            "curl", "-sS", "--noproxy", "*", "--max-time", "20", "--cacert", self.authority, "--resolve", resolve,
            "-w", "\n%{http_code} %{remote_ip} %{http_version}", *options, f"{scheme}://{name}:{port}/{path}",
        )  # fmt: skip

    async def asked(self, *args, **options):
        return await asyncio.to_thread(self.curl, *args, **options)

    @property
    def counters(self):
        """What the proxy has counted of such connections."""
        return self.target.counters.outbound

    async def counted(self, **wanted):
        """Until the proxy has told these counters."""
        await self.some.until(lambda: {name: self.counters.get(name) for name in wanted} == wanted)


@contextlib.asynccontextmanager
async def outbound(program, tmp_path, *policies, secrets=None, **settings):
    """`secrets` are by name: PEM of a CA with its key, or of authorities."""
    authority = Authority()
    issued = authority.issue(*NAMES)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    with pod_namespace() as space, cgroup() as folder, contextlib.ExitStack() as servers:
        listen = [f"{space.client_ip}:{TLS}", f"[{space.client_ip6}]:{TLS}"]
        plain = [f"{space.client_ip}:{PLAIN}", f"{space.client_ip}:{CLEAR_H2} http2"]
        web = servers.enter_context(
            nginx(space.client, tmp_path / "web", listen=listen, plain=plain, certificate=issued, http2=True)
        )  # fmt: skip
        (tmp_path / "other").mkdir()
        servers.enter_context(s_server(space.client, tmp_path / "other", OTHER, issued))
        await compiled_egress()
        async with rig(program, **settings) as some:
            some.secrets.texts.update({"authority": authority.pem, **(secrets or {})})
            pod = pod_of(space)
            key = some.add(replace(pod, location=replace(pod.location, cgroup=str(folder))))
            made = Pod(space, folder, some, key, tmp_path / "ca.pem", web)
            await made.program(*policies)
            yield made


def succeeded(done, address):
    assert done.returncode == 0, done.stderr
    code, peer, _ = done.stdout.rsplit("\n", 1)[1].split()
    assert (code, peer) == ("200", address)
    return True


def was_reset(done):
    """While it connects, in its handshake, or while it waits for an answer: whenever curl looks."""
    assert done.returncode in (7, 35, 56), (done.returncode, done.stderr)
    return True
