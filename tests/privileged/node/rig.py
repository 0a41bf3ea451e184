"""A reconciler with real namespaces, real steering and real pod proxies, and nothing else of the daemon around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TypeVar

from msgspec.structs import replace

from sidestep.aio.packets import sealed_memfd
from sidestep.aio.time_limit import time_limit
from sidestep.config.node_settings import NodeSettings
from sidestep.model.errors import RefusedError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest
from sidestep.model.intercept import Intercept, Kind, WorkloadRef
from sidestep.model.inventory import Inventory
from sidestep.model.pod import ContainerPort, Family, Location, Pod, PodKey, Service, ServicePort
from sidestep.node.certificates.pem import validate_identity, validate_trust
from sidestep.node.conditions import Conditions
from sidestep.node.planning.inspection import Policies
from sidestep.node.planning.plan import CertificateFacts, Plan
from sidestep.node.planning.planner import plan
from sidestep.node.pods.audit import Audit
from sidestep.node.pods.reconciler import Reconciler
from sidestep.node.pods.target import Target
from sidestep.node.pods.toolbox import NoRecords, RecordLog, Toolbox
from sidestep.node.proxies.backoff import Backoff
from sidestep.node.proxies.desired import CredentialSource
from sidestep.node.proxies.supervisor import ProxySupervisor, SupervisorSettings
from sidestep.policy.survey import CertificateKey, Side, WantedCertificate
from sidestep.steering import CompiledProgram, compile_egress, compile_peername
from tests.harness.namespaces import PodNamespace
from tests.harness.peers import Client
from tests.harness.waiting import SLACK

T = TypeVar("T")
PORT = 8080
_egress: dict[str, CompiledProgram] = {}


async def compiled_egress() -> dict[str, CompiledProgram]:
    """The programs for outbound connections, compiled by the first rig that wants them: 2 s of a processor."""
    if not _egress:
        _egress.update(await compile_egress())
    return _egress


QUICK = SupervisorSettings(backoff=Backoff(crashes=3, loop_pause=0.5, window=5.0))


class NoHandlers:
    """Sessions of which none is there."""

    async def open_stream(self, opening, *, pod):
        raise RefusedError("the session is gone")

    def record(self, requests, *, pod):
        pass

    def record_losses(self, losses, *, pod):
        pass

    def record_earlier(self, told, *, pod):
        pass


@dataclass
class Secrets:
    """What policies name: `texts` are PEM by name, of a CA with its key or of authorities; `facts` what was read."""

    texts: dict[str, bytes] = field(default_factory=dict)
    facts: dict[CertificateKey, CertificateFacts] = field(default_factory=dict)
    _pems: dict[str, bytes] = field(default_factory=dict)

    def read(self, wanted: Iterable[WantedCertificate]) -> None:
        """Read what is wanted, as the one-shot child does. A Secret that is not there is one without a certificate."""
        for each in wanted:
            pem = self.texts.get(each.source.value)
            facts = CertificateFacts()
            if pem is not None and each.key.side is Side.UPSTREAM:
                trusted = validate_trust(pem)
                facts = CertificateFacts(trust=trusted.trust.name)
                self._pems[facts.trust] = trusted.pem
            elif pem is not None:
                identity = validate_identity(chain=pem, key=pem)
                facts = CertificateFacts(identity=identity.identity.name)
                self._pems[facts.identity] = identity.pem
            self.facts[each.key] = facts

    def credential(self, pod: PodKey, name: str) -> CredentialSource | None:
        """Where a pod proxy gets what was read."""
        del pod
        if name not in self._pems:
            return None

        async def read() -> int:
            return sealed_memfd("credential", self._pems[name])

        return CredentialSource(read)


@dataclass
class Rig:
    """`pods`, `intercepts` and `policies` are the desired state; `plan()` makes it known."""

    reconciler: Reconciler
    conditions: Conditions
    audit: Audit
    supervisor: ProxySupervisor
    secrets: Secrets
    pods: dict[PodKey, Pod] = field(default_factory=dict)
    intercepts: list[Intercept] = field(default_factory=list)
    policies: Policies = ()
    crashes: list[BaseException] = field(default_factory=list)

    def plan(self) -> Plan:
        # appProtocol http: the simple app of the tests is not probed.
        service = Service("shop", "web", {"app": "web"}, (ServicePort(PORT, PORT, app_protocol="http"),))
        made = plan(
            Inventory(pods=self.pods, services=(service,)),
            self.intercepts,
            NodeSettings(),
            self.secrets.facts,
            node_annotations={},
            policies=self.policies,
        )
        self.reconciler.apply(made, drain_timeout=5.0)
        return made

    def add(self, pod: Pod) -> PodKey:
        self.pods[pod.key] = pod
        return pod.key

    def target(self, key: PodKey) -> Target:
        found = self.reconciler.target(key)
        assert found is not None
        return found

    def steered(self, key: PodKey, port: int = PORT) -> bool:
        found = self.reconciler.target(key)
        return found is not None and bool(found.steered().get(port))

    def steered_families(self, key: PodKey, port: int = PORT) -> frozenset[Family]:
        found = self.reconciler.target(key)
        return found.steered().get(port, frozenset()) if found is not None else frozenset()

    def texts(self) -> str:
        return "\n".join(f"{each.type}: {each.text}" for each in self.conditions.all())

    async def until(self, condition: Callable[[], T], *, within: float = 5.0) -> T:
        """Wait for a condition; the seconds it may take on an idle machine (`waiting.SLACK`)."""
        within *= SLACK
        try:
            async with time_limit(within):
                while not (found := condition()):  # noqa: ASYNC110 - a condition of anything, under a deadline
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"not within {within} s; conditions: {self.texts()}") from None
        assert not self.crashes, self.crashes
        return found


@asynccontextmanager
async def rig(
    program: CompiledProgram, *, settings: SupervisorSettings | None = None, records: RecordLog | None = None
) -> AsyncIterator[Rig]:
    conditions = Conditions()
    supervisor = await ProxySupervisor.start(on_output=print, settings=settings)
    crashes: list[BaseException] = []
    secrets = Secrets()

    def tools(on_change):
        return Toolbox(
            program=program,
            supervisor=supervisor,
            handlers=NoHandlers(),
            credential=secrets.credential,
            conditions=conditions,
            now=asyncio.get_running_loop().time,
            outbound=compiled_egress,
            peernames=compile_peername,
            on_change=on_change,
            records=NoRecords() if records is None else records,
        )

    reconciler = Reconciler(
        tools=tools,
        conditions=conditions,
        on_change=lambda: None,
        on_crash=lambda task, error: crashes.append(error),
    )
    made = Rig(reconciler, conditions, Audit(reconciler, conditions, node="n1"), supervisor, secrets, crashes=crashes)
    reconciler.start()
    try:
        yield made
        assert not crashes, crashes
    finally:
        await reconciler.close()
        await supervisor.aclose()


def pod_of(space: PodNamespace, name: str = "orders-1", *, stated: bool = True) -> Pod:
    return Pod(
        key=PodKey("shop", name),
        uid=name,
        ips=tuple(ip_address(each) for each in space.ips) if stated else (),
        ports=(ContainerPort(PORT, name="web"),),
        labels={"app": "web"},
        location=Location(netns=str(space.pod.path)),
    )


def moved(pod: Pod, path: object) -> Pod:
    return replace(pod, location=Location(netns=str(path)))


def intercept(*, name: str = "orders-1", whole: bool = False, uid: str = "u1") -> Intercept:
    some = Filter() if whole else Filter(headers=(HeaderCondition("x-user", HeaderTest.EXACT, uid),))
    return Intercept(uid, "shop", uid, Kind.INTERCEPT, WorkloadRef(name, "pod"), str(PORT), filter=some)


def ask(space: PodNamespace, *, ip: str | None = None) -> str:
    """Who answers a new client connection; an OSError when nobody does."""
    with Client(ip or space.ip, PORT, netns=space.client, within=5.0) as client:
        return client.get("/", "Connection: close").header("x-served-by")
