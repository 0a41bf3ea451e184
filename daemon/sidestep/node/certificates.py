"""The certificates that annotations name: read, judged, watched; private keys never kept.

In: what the survey wants (one side of one port of one pod, by path or by Secret). Out: `facts`, the names of usable
credentials for the planner; `held`, what `list` shows; conditions; and a `credential` per name, which *reads the source
again* whenever a pod proxy needs the key, so that a key is in this process only while it passes through.

- Whatever is wrong is one condition that names annotation, value and reason. The last good certificate stays in use:
  facts change only when something good replaces it, or when its source can no longer deliver it to a new proxy.
- Paths of ports in use are read again every `POLL` seconds (a rotation is served within 5 s), others every `IDLE`. A
  keyed digest tells whether anything changed; only then is anything parsed.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from sidestep.config.annotation_problem import AnnotationProblem
from sidestep.config.annotations import SourceKind
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import ConfigurationError, KernelError, SidestepError
from sidestep.model.pod import Pod, PodKey
from sidestep.node import pem
from sidestep.node.certificate_material import Files, Material, MaterialReader, SecretData
from sidestep.node.conditions import Conditions, Source
from sidestep.node.plan import CertificateFacts
from sidestep.node.survey import CertificateKey, Side, WantedCertificate

POLL = 3.0
"""Seconds between two readings of the paths of steered ports."""

IDLE_POLLS = 5
"""Other paths are read every that many polls."""

CredentialSource = Callable[[], Awaitable[bytes]]
"""Reads a credential's PEM. Raises SidestepError when it cannot be had any more."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is known about one certificate. `identity` and `trust` are the last good ones."""

    wanted: WantedCertificate
    pod_uid: str
    digest: bytes = b""
    identity: pem.Identity | None = None
    trust: pem.Trust | None = None
    problems: tuple[str, ...] = ()

    @property
    def facts(self) -> CertificateFacts:
        """What the planner wants to know."""
        return CertificateFacts(
            identity=self.identity.name if self.identity is not None else "",
            trust=self.trust.name if self.trust is not None else "",
            dns_name=self.identity.dns_name if self.identity is not None else "",
            problem="; ".join(self.problems),
        )


@dataclass(slots=True)
class _Held:
    """All certificates, and the pods that they belong to."""

    by_key: dict[CertificateKey, Held] = field(default_factory=dict)
    pods: Mapping[PodKey, Pod] = field(default_factory=dict)


class Certificates:
    """The store. `on_change` is called when facts change outside of `want`."""

    def __init__(
        self, *, files: Files, secret: SecretData, conditions: Conditions, on_change: Callable[[], None]
    ) -> None:
        self._reader = MaterialReader(files=files, secret=secret)
        self._conditions = conditions
        self._on_change = on_change
        self._held = _Held()
        self._lock = asyncio.Lock()
        self._salt = secrets.token_bytes(32)

    def facts(self) -> dict[CertificateKey, CertificateFacts]:
        """The facts about every certificate that has been looked at, good or bad."""
        return {key: held.facts for key, held in self._held.by_key.items()}

    def held(self, key: CertificateKey) -> Held | None:
        """What is known about one certificate."""
        return self._held.by_key.get(key)

    async def want(self, wanted: Iterable[WantedCertificate], pods: Mapping[PodKey, Pod]) -> None:
        """Look at every certificate that is new, or that a Secret holds; forget those nobody wants any more."""
        async with self._lock:
            before = self._held.by_key
            after: dict[CertificateKey, Held] = {}
            self._held.pods = pods
            for each in wanted:
                uid = pods[each.key.pod].uid
                old = before.get(each.key)
                if old is not None and (old.pod_uid, _place(old.wanted)) != (uid, _place(each)):
                    old = None
                if old is None or old.wanted != each or each.source.kind is SourceKind.SECRET:
                    old = await self._look(each, uid, old)
                after[each.key] = old
            for gone in before.keys() - after.keys():
                self._conditions.state(_source(gone), ())
            self._held.by_key = after

    async def poll(self, in_use: Callable[[], frozenset[CertificateKey]]) -> None:
        """Read paths again for as long as the daemon runs; `in_use` tells the certificates of steered ports."""
        turn = 0
        while True:
            await asyncio.sleep(POLL)
            turn += 1
            busy = in_use()
            changed = False
            for key in list(self._held.by_key):
                if key in busy or turn % IDLE_POLLS == 0:
                    changed |= await self._again(key)
            if changed:
                self._on_change()

    def credential(self, pod: PodKey, name: str) -> CredentialSource:
        """How a pod proxy of this pod gets the credential. What it raises also takes the certificate out of use."""

        async def read() -> bytes:
            async with self._lock:
                for key, held in self._held.by_key.items():
                    if key.pod == pod and held.identity is not None and held.identity.name == name:
                        return await self._deliver(key, held, identity=True)
                    if key.pod == pod and held.trust is not None and held.trust.name == name:
                        return await self._deliver(key, held, identity=False)
            raise ConfigurationError("is no longer wanted", subject="certificate", value=name)

        return read

    async def _again(self, key: CertificateKey) -> bool:
        async with self._lock:
            held = self._held.by_key.get(key)
            if held is None:
                return False
            new = await self._look(held.wanted, held.pod_uid, held)
            self._held.by_key[key] = new
            return new.facts != held.facts

    async def _look(self, wanted: WantedCertificate, uid: str, old: Held | None) -> Held:
        """Read and judge; what is good replaces what was, what is bad is a problem beside it."""
        now = dt.datetime.now(dt.UTC)
        held = replace(old, wanted=wanted) if old is not None else Held(wanted, uid)
        try:
            material = await self._read(wanted)
        except SidestepError as error:
            held = replace(held, digest=b"", problems=(_reason(error),))
        else:
            digest = self._digest(material)
            if digest != held.digest:
                held = _judge(held, material, digest, now)
        problems = list(held.problems)
        if held.identity is not None and held.identity.not_after <= now and not problems:
            problems.append(
                f"the certificate expired on {held.identity.not_after:%Y-%m-%d %H:%M} UTC; it is still used"
            )
        self._conditions.state(_source(wanted.key), [_condition(wanted, problem) for problem in problems])
        return held

    async def _deliver(self, key: CertificateKey, held: Held, *, identity: bool) -> bytes:
        try:
            material = await self._read(held.wanted)
            if identity:
                name = pem.identity_name(chain=material.chain, key=material.key)
                if held.identity is not None and name == held.identity.name:
                    return pem.identity_pem(chain=material.chain, key=material.key)
            elif held.trust is not None and pem.judge_trust(material.ca).name == held.trust.name:
                return pem.trust_pem(material.ca)
            raise ConfigurationError("the certificate changed while it was being handed over")
        except SidestepError:
            lost = replace(held, digest=b"", identity=None) if identity else replace(held, digest=b"", trust=None)
            self._held.by_key[key] = await self._look(lost.wanted, lost.pod_uid, lost)
            self._on_change()
            raise

    async def _read(self, wanted: WantedCertificate) -> Material:
        return await self._reader.read(wanted, self._held.pods.get(wanted.key.pod))

    def _digest(self, material: Material) -> bytes:
        digest = hashlib.blake2b(key=self._salt, digest_size=16)
        for part in (material.chain, material.key, material.ca):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()


def _judge(held: Held, material: Material, digest: bytes, now: dt.datetime) -> Held:
    problems = []
    identity, trust = held.identity, held.trust
    if material.chain or held.wanted.key.side is Side.DOWNSTREAM:
        try:
            identity = pem.judge_identity(chain=material.chain, key=material.key, now=now)
        except pem.PemError as error:
            problems.append(f"{material.file(error.part)}: {error}")
    else:
        identity = None
    if material.ca:
        try:
            trust = pem.judge_trust(material.ca)
        except pem.PemError as error:
            problems.append(f"{material.file(error.part)}: {error}")
    elif not problems:
        trust = None
    return replace(held, digest=digest, identity=identity, trust=trust, problems=tuple(problems))


def _place(wanted: WantedCertificate) -> tuple[SourceKind, str]:
    """Another place is another certificate: nothing is inherited from the last one."""
    return wanted.source.kind, wanted.source.value


def _source(key: CertificateKey) -> Source:
    return Source("certificate", key.pod, key.port, key.side.value)


def _reason(error: SidestepError) -> str:
    if isinstance(error, KernelError):
        return f"cannot be read: {error}"
    return str(error)


def _condition(wanted: WantedCertificate, reason: str) -> Condition:
    source = wanted.source
    pod = f"pod {wanted.key.pod}"
    problem = AnnotationProblem(source.annotation, source.value, reason, pod, source.origin)
    return Condition(ConditionType.CERTIFICATE_INVALID, wanted.key.subject, problem.text)
