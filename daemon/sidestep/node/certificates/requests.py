"""Requests of the daemon to the reader, and their answers: one msgpack struct per packet in both directions.

A private key leaves a one-shot child as a descriptor, never as bytes. The only secret in these messages is the
credentials of an HTTP proxy, which the daemon has from its environment.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

MAX_REQUEST: Final = 48 * 1024
"""Bytes of a request, far below the size limit of a packet."""
MAX_REASON: Final = 1000
"""Characters of a reason."""


class Folder(msgspec.Struct, tag=True, frozen=True):
    """A folder below the roots of containers, in order: (root, start time of its process or None)."""

    roots: tuple[tuple[str, int | None], ...]
    folder: str


class ManifestSecret(msgspec.Struct, tag=True, frozen=True):
    """A Secret in a file of the manifest directory."""

    path: str
    namespace: str
    name: str


class ApiServer(msgspec.Struct, frozen=True):
    """Address of the API server. Without `ca_file` it is reached in clear text; `base` is a prefix of every path.

    `proxy` is the URL of the HTTP proxy that leads there, "" for none, `proxy_authorization` the value of its header.
    """

    host: str
    port: int
    base: str = ""
    ca_file: str = ""
    token_file: str = ""
    proxy: str = ""
    proxy_authorization: str = ""

    def __repr__(self) -> str:
        """Leave out the credentials."""
        return f"ApiServer({self.host!r}, {self.port!r})"


class ClusterSecret(msgspec.Struct, tag=True, frozen=True):
    """A Secret of the cluster, read with the daemon's own token."""

    namespace: str
    name: str
    server: ApiServer


Source = Folder | ManifestSecret | ClusterSecret


class StampRequest(msgspec.Struct, tag=True, frozen=True):
    """Stamp the files of a certificate without opening them. Answered by `Stamped`."""

    source: Folder


class ReadRequest(msgspec.Struct, tag=True, frozen=True):
    """Read and validate a certificate. Answered by `Summary`, with the memfd of the credential named by `deliver`."""

    source: Source
    ca_alone: bool
    """Whether the source may consist of a `ca.crt` alone."""
    deliver: str = ""


class ManifestsRequest(msgspec.Struct, tag=True, frozen=True):
    """Read files of the manifest directory. Answered by `Payload`, with a memfd of the pickled result."""

    folder: str
    names: tuple[str, ...]


class EnvironmentRequest(msgspec.Struct, tag=True, frozen=True):
    """Read the variables that a process was started with. Answered by `Payload`, with a memfd of them, which holds at
    least one byte.

    `birth` is its start time in clock ticks since boot; None where that is not known.
    """

    pid: int
    birth: int | None


class NamesRequest(msgspec.Struct, tag=True, frozen=True):
    """Read how names are looked up below a root: etc/resolv.conf and etc/hosts. Answered by `Payload`, with a memfd of
    `Names` as MessagePack. What is not there is empty.

    `root` is (path, start time of its process or None).
    """

    root: tuple[str, int | None]


class Names(msgspec.Struct, frozen=True):
    """What the two files hold. Bytes that are not UTF-8 are replaced."""

    resolv_conf: str
    hosts: str


class FilesRequest(msgspec.Struct, tag=True, frozen=True):
    """Send a snapshot of files of a container (`node.certificates.snapshot`). Answered by `Streaming`.

    `pid` is its main process, started at `birth`; without one, the folder `root` is the container's root. Without
    `paths` it is what is mounted in the container.
    """

    pid: int | None
    birth: int | None
    root: str
    paths: tuple[str, ...]
    max_bytes: int


Request = StampRequest | ReadRequest | ManifestsRequest | EnvironmentRequest | NamesRequest | FilesRequest


class Started(msgspec.Struct, tag=True, frozen=True):
    """First message of a one-shot child. fd: its pidfd."""


class Stamped(msgspec.Struct, tag=True, frozen=True):
    """Digest of the existing files and their versions; empty when the next poll should read the source in any case."""

    stamp: str


class IdentityFacts(msgspec.Struct, frozen=True):
    """`pem.Identity`; times in seconds since the epoch."""

    name: str
    dns_name: str
    names: tuple[str, ...]
    not_before: float
    not_after: float
    serial: str


class TrustFacts(msgspec.Struct, frozen=True):
    """`pem.Trust`."""

    name: str
    subject: str


class Summary(msgspec.Struct, tag=True, frozen=True):
    """Content of a source. `problems` name file, block and reason."""

    identity: IdentityFacts | None = None
    trust: TrustFacts | None = None
    no_identity: bool = False
    """The source contains no certificate and does not need one."""
    no_trust: bool = False
    problems: tuple[str, ...] = ()


class Payload(msgspec.Struct, tag=True, frozen=True):
    """fd: a sealed memfd of this size."""

    size: int


class Streaming(msgspec.Struct, tag=True, frozen=True):
    """fd: a stream socket with frames (`protocols.file_frames`), which the child sends until its end."""


class Absence(enum.StrEnum):
    """What is not there, so that it may come without any change of what is written."""

    NOTHING = ""
    FOLDER = "folder"
    """None of the roots has a certificate at this path."""
    ROOT = "root"
    """A root does not exist, or its process has ended; none of the others has a certificate at this path."""


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The source could not be read. `status` is the HTTP status of the API server, where it answered."""

    reason: str
    status: int = 0
    absent: Absence = Absence.NOTHING


Answer = Started | Stamped | Summary | Payload | Streaming | Failed
