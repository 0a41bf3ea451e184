"""Reading the files of a certificate where an annotation says that they are: a folder of a container, or a Secret.

- A path belongs to the containers that the survey lists, in order; the first that has the folder's certificate is it.
- Both spellings of the file names are known; within one container they are not mixed.
- An upstream source may hold nothing but a `ca.crt`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sidestep.config.annotations import CertificateSource, SourceKind
from sidestep.model.errors import ConfigurationError
from sidestep.netns import AbsentFileError
from sidestep.node import pem
from sidestep.node.survey import Side, WantedCertificate

if TYPE_CHECKING:
    from sidestep.model.pod import Pod

SPELLINGS = (("tls.crt", "tls.key", "ca.crt"), ("cert-chain.pem", "key.pem", "root-cert.pem"))
"""(certificate, key, CA) as kubernetes.io/tls Secrets and as Istio name them."""


class Files(Protocol):
    """What is needed of `netns.FileReader`."""

    async def read(self, root: str, path: str, *, birth: int | None = None) -> bytes:
        """Content of a file below a root, of the process that was started then."""


SecretData = Callable[[str, str], Mapping[str, bytes] | None]
"""(namespace, name) to the Secret's data; None when there is none."""


@dataclass(frozen=True, slots=True)
class _Root:
    """A folder in which a path may lie; of the process that was started at `birth`, where that is known."""

    path: str
    birth: int | None = None


@dataclass(frozen=True, slots=True)
class Material:
    """Bytes as read; empty where there is none. Never kept beyond the call that reads it."""

    chain: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    ca: bytes = field(default=b"", repr=False)
    spelling: tuple[str, str, str] = SPELLINGS[0]

    def file(self, part: pem.Part) -> str:
        """Name of the file that holds a part."""
        return self.spelling[(pem.Part.CHAIN, pem.Part.KEY, pem.Part.CA).index(part)]


class MaterialReader:
    """Reads, and keeps nothing."""

    def __init__(self, *, files: Files, secret: SecretData) -> None:
        self._files = files
        self._secret = secret

    async def read(self, wanted: WantedCertificate, pod: Pod | None) -> Material:
        """What the source holds now. Raises ConfigurationError, KernelError."""
        source = wanted.source
        if source.kind is SourceKind.SECRET:
            return self._from_secret(wanted.key.pod.namespace, source)
        roots = _roots(pod, wanted.containers) if pod is not None else ()
        if not roots:
            raise ConfigurationError(
                "no container of the pod is known to run here (sidestep.dev/pid or sidestep.dev/root)"
            )
        for root in roots:
            for spelling in SPELLINGS:
                material = await self._from_folder(
                    root, source.value, spelling, ca_alone=wanted.key.side is Side.UPSTREAM
                )
                if material is not None:
                    return material
        raise ConfigurationError("the folder holds neither tls.crt nor cert-chain.pem")

    async def _from_folder(
        self, root: _Root, folder: str, spelling: tuple[str, str, str], *, ca_alone: bool
    ) -> Material | None:
        """The material of one spelling; None when its certificate is not there."""
        names = [f"{folder.rstrip('/')}/{name}" for name in spelling]
        chain = await self._optional(root, names[0])
        if not chain and not ca_alone:
            return None
        ca = await self._optional(root, names[2])
        if not chain:
            return Material(ca=ca, spelling=spelling) if ca else None
        try:
            key = await self._files.read(root.path, names[1], birth=root.birth)
        except AbsentFileError as error:
            raise ConfigurationError(f"the folder holds {spelling[0]} but no {spelling[1]}") from error
        return Material(chain, key, ca, spelling)

    async def _optional(self, root: _Root, path: str) -> bytes:
        try:
            return await self._files.read(root.path, path, birth=root.birth)
        except AbsentFileError:
            return b""

    def _from_secret(self, namespace: str, source: CertificateSource) -> Material:
        data = self._secret(namespace, source.value)
        if data is None:
            raise ConfigurationError(f"there is no Secret {namespace}/{source.value}")
        for spelling in SPELLINGS:
            chain, key, ca = spelling
            if chain in data and key not in data:
                raise ConfigurationError(f"the Secret holds {chain} but no {key}")
            if chain in data or ca in data:
                return Material(data.get(chain, b""), data.get(key, b""), data.get(ca, b""), spelling)
        raise ConfigurationError("the Secret holds neither tls.crt nor cert-chain.pem")


def _roots(pod: Pod, containers: tuple[str, ...]) -> tuple[_Root, ...]:
    """Root folders in which a path may lie, in order."""
    location = pod.location
    pids = [location.pids[name] for name in containers if name in location.pids]
    if not pids and "" in location.pids:
        pids = [location.pids[""]]
    roots = [_Root(f"/proc/{pid}/root", location.births.get(pid)) for pid in pids]
    # A stated root stands for containers that have no process here, or is stated on purpose: it comes first.
    return tuple(dict.fromkeys([*([_Root(location.root)] if location.root else []), *roots]))
