"""The one-shot child of the reader: opens a source, drops all privileges, validates, answers, ends.

A source is a certificate, manifests, the variables of a process, or the files by which it looks up names.
Files of a container are no source: they are sent piece by piece, by a child that becomes the user of the container's
process (`container_root`, `snapshot`).

    1  as root      sends its pidfd, so that the daemon can kill it; opens the files (or the token for the API server)
    2               becomes a user without privileges, with limits for CPU time, wall time, memory and file size
    3               reads, parses and validates the content, which is untrusted
    4               answers with a summary; a credential goes into a sealed memfd, whose descriptor is attached
    5               ends in any case; the kernel frees its memory

Thus a private key is held by this process and by the pod's proxy only. The daemon between them holds a descriptor,
which it neither reads nor maps. The privileged steps 1 and 2 read no content of certificate files.

Both naming schemes of the files are supported, but not mixed within one folder or Secret. A certificate file that
contains its private key needs no key file.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import pickle
import resource
import signal
import socket
import time
from collections.abc import Mapping
from typing import Final, NoReturn

import msgspec

from sidestep.aio.packets import MAX_PAYLOAD, sealed_memfd, send_packet
from sidestep.model.errors import ConfigurationError, KernelError, SidestepError
from sidestep.node.certificates import container_root, pem, snapshot
from sidestep.node.certificates.below_root import (
    MAX_FILE,
    AbsentFileError,
    AbsentRootError,
    Root,
    open_regular,
    read_steady,
    stamp,
)
from sidestep.node.certificates.process_environment import open_environment, read_environment
from sidestep.node.certificates.requests import (
    MAX_REASON,
    Absence,
    ClusterSecret,
    EnvironmentRequest,
    Failed,
    FilesRequest,
    Folder,
    IdentityFacts,
    ManifestSecret,
    ManifestsRequest,
    Names,
    NamesRequest,
    Payload,
    ReadRequest,
    Started,
    Streaming,
    Summary,
    TrustFacts,
)
from sidestep.node.proxy_uids import READER
from sidestep.protocols.pem import KEYS, blocks
from sidestep.sandbox import capabilities, landlock, priorities
from sidestep.sandbox import rlimits as limits

SPELLINGS: Final = (("tls.crt", "tls.key", "ca.crt"), ("cert-chain.pem", "key.pem", "root-cert.pem"))
"""Names of (certificate, key, CA), as in kubernetes.io/tls Secrets and as in Istio."""

CPU: Final = 2
"""Seconds of CPU time for one certificate. A file of 30 KiB takes a few milliseconds."""
WALL: Final = 10
"""Seconds of wall time, including the answer of an API server."""
MANIFESTS_CPU: Final = 120
"""Seconds for all manifests together; a folder may contain 32 MiB."""
MEMORY: Final = 256 * 1024 * 1024
"""Bytes of private memory."""
_DESCRIPTORS: Final = 64
_RACY: Final = 0.1
"""Seconds within which a file can change twice with unchanged times."""
_NAMES: Final = (("/etc/resolv.conf", 16 * 1024), ("/etc/hosts", 256 * 1024))
"""The files by which names are looked up, and how many bytes of each are used."""
_MAX_MANIFEST: Final = 4 * MAX_FILE
_PR_SET_PDEATHSIG = 1

AnsweredAtOnce = ReadRequest | ManifestsRequest | EnvironmentRequest | NamesRequest


def run(request: AnsweredAtOnce | FilesRequest, answers: socket.socket) -> NoReturn:
    """Carry out one request and end the process. Runs in a fresh fork of the reader."""
    status = 1
    try:
        _set_parent_death_signal()  # a file system may hang before the other limits apply
        _close_all_but(answers.fileno())
        _send_pidfd(answers)
        if isinstance(request, FilesRequest):
            _send_files(request, answers)
        else:
            answer, fd = _answer(request)
            send_packet(answers, msgspec.msgpack.encode(answer), fd)
        status = 0
    except SidestepError as error:
        _answer_and_exit(answers, failed(error))
    except MemoryError:
        _answer_and_exit(answers, Failed("reading it takes too much memory"))
    finally:
        os._exit(status)


def _answer(request: AnsweredAtOnce) -> tuple[Summary | Payload, int | None]:
    match request:
        case ManifestsRequest():
            return _manifests(request)
        case EnvironmentRequest():
            return _environment(request)
        case NamesRequest():
            return _names(request)
        case _:
            return _certificate(request)


def failed(error: SidestepError) -> Failed:
    """Return the answer for an error."""
    reason = f"cannot be read: {error}" if isinstance(error, KernelError) else str(error)
    absent = Absence.NOTHING
    if isinstance(error, AbsentRootError):
        absent = Absence.ROOT
    elif isinstance(error, AbsentFileError):
        absent = Absence.FOLDER
    return Failed(reason[:MAX_REASON], getattr(error, "status", 0), absent)


def stamp_of(source: Folder) -> str:
    """Return a digest of the versions of a certificate's files; "" when they were written too recently to tell.

    A root that is gone counts as a version. Raises SidestepError.
    """
    digest = hashlib.blake2b(digest_size=16)
    newest = 0
    for path, birth in source.roots:
        try:
            for name in itertools.chain.from_iterable(SPELLINGS):
                found = stamp(Root(path, birth), f"{source.folder.rstrip('/')}/{name}")
                digest.update(repr(found).encode())
                newest = max(newest, *found[3:]) if found is not None else newest
        except AbsentRootError:
            digest.update(b"gone")
    # A file written just now can be written again without a change of its times.
    return "" if abs(time.time() - newest / 1e9) < _RACY else digest.hexdigest()


# --- reading --------------------------------------------------------------------------------------------------------


class _Material(msgspec.Struct, frozen=True):
    """File contents; None for a missing file."""

    chain: bytes | None
    key: bytes | None
    ca: bytes | None
    spelling: tuple[str, str, str]
    place: str

    def file(self, part: pem.Part) -> str:
        """Return the name of the file that contains a part."""
        return self.spelling[(pem.Part.CHAIN, pem.Part.KEY, pem.Part.CA).index(part)]


def _certificate(request: ReadRequest) -> tuple[Summary, int | None]:
    source = request.source
    match source:
        case Folder():
            opened = _open_folder(source, ca_alone=request.ca_alone)
            _drop_privileges(cpu=CPU, wall=WALL)
            material = _read_folder(opened)
        case ManifestSecret():
            fd = open_regular(Root("/"), source.path)
            _drop_privileges(cpu=WALL, wall=WALL)  # manifests are written by the operator
            material = _from_secret(source, _manifest_data(fd, source))
        case ClusterSecret():
            material = _from_secret(source, _cluster_data(source))
    summary, credentials = _validate(material, ca_alone=request.ca_alone)
    if not request.deliver:
        return summary, None
    if request.deliver not in credentials:
        raise ConfigurationError(
            "; ".join(summary.problems) or "the certificate changed while it was being handed over"
        )
    return summary, sealed_memfd("sidestep-credential", credentials[request.deliver])


class _OpenFiles(msgspec.Struct, frozen=True):
    """Open descriptors of a folder's files, in the order of `spelling`."""

    fds: tuple[int | None, int | None, int | None]
    spelling: tuple[str, str, str]


def _open_folder(source: Folder, *, ca_alone: bool) -> _OpenFiles:
    """Open the files below the first root that has them.

    Raises AbsentRootError (not found, and one of the roots is gone), AbsentFileError, ConfigurationError, KernelError.
    """
    gone: AbsentRootError | None = None
    for path, birth in source.roots:
        try:
            for spelling in SPELLINGS:
                certificate, key, ca = (
                    _optional(Root(path, birth), f"{source.folder.rstrip('/')}/{name}") for name in spelling
                )
                if certificate is not None or (ca_alone and ca is not None):
                    return _OpenFiles((certificate, key, ca), spelling)
        except AbsentRootError as error:
            gone = gone or error
    raise gone or AbsentFileError("the folder holds neither tls.crt nor cert-chain.pem")


def _optional(root: Root, path: str) -> int | None:
    try:
        return open_regular(root, path)
    except AbsentFileError:
        return None


def _read_folder(opened: _OpenFiles) -> _Material:
    chain, key, ca = (
        None if fd is None else read_steady(fd, name) for fd, name in zip(opened.fds, opened.spelling, strict=True)
    )
    return _Material(chain, key if chain is not None else None, ca, opened.spelling, "the folder")


def _manifest_data(fd: int, source: ManifestSecret) -> Mapping[str, bytes] | None:
    from sidestep.config.manifests import secret_data

    return secret_data(read_steady(fd, source.path), source.namespace, source.name)


def _cluster_data(source: ClusterSecret) -> Mapping[str, bytes] | None:
    from sidestep.kube import secret_fetch
    from sidestep.kube.proxies import Proxy

    server = source.server
    access = secret_fetch.prepare(
        server.host,
        server.port,
        base=server.base,
        ca_file=server.ca_file,
        token_file=server.token_file,
        proxy=Proxy(server.proxy, server.proxy_authorization) if server.proxy else None,
    )
    _drop_privileges(cpu=CPU, wall=WALL)
    return secret_fetch.fetch(access, source.namespace, source.name)


def _from_secret(source: ManifestSecret | ClusterSecret, data: Mapping[str, bytes] | None) -> _Material:
    if data is None:
        raise ConfigurationError(f"there is no Secret {source.namespace}/{source.name}")
    for spelling in SPELLINGS:
        chain, key, ca = spelling
        if chain in data or ca in data:
            return _Material(data.get(chain), data.get(key), data.get(ca), spelling, "the Secret")
    raise ConfigurationError("the Secret holds neither tls.crt nor cert-chain.pem")


# --- validating -----------------------------------------------------------------------------------------------------


def _validate(material: _Material, *, ca_alone: bool) -> tuple[Summary, dict[str, bytes]]:
    problems: list[str] = []
    credentials: dict[str, bytes] = {}
    identity: IdentityFacts | None = None
    trust: TrustFacts | None = None
    if material.chain is None and ca_alone:
        pass
    elif material.chain is None:
        problems.append(f"{material.place} holds no {material.spelling[0]}")
    else:
        try:
            credential = pem.validate_identity(chain=material.chain, key=_key_of(material))
        except pem.PemError as error:
            problems.append(f"{material.file(error.part)}: {error}")
        except ConfigurationError as error:
            problems.append(str(error))
        else:
            identity = _identity_facts(credential.identity)
            credentials[identity.name] = credential.pem
    if material.ca is not None:
        try:
            trusted = pem.validate_trust(material.ca)
        except pem.PemError as error:
            problems.append(f"{material.file(error.part)}: {error}")
        else:
            trust = TrustFacts(trusted.trust.name, trusted.trust.subject)
            credentials[trust.name] = trusted.pem
    summary = Summary(
        identity=identity,
        trust=trust,
        no_identity=material.chain is None and ca_alone,
        no_trust=material.ca is None,
        problems=tuple(problem[:MAX_REASON] for problem in problems),
    )
    return summary, credentials


def _key_of(material: _Material) -> bytes:
    """Return the text with the private key: the key file, otherwise the certificate file. Raises ConfigurationError."""
    chain = material.chain or b""
    if material.key is not None:
        return material.key
    if any(block.label in KEYS for block in blocks(chain, limit=pem.MAX_CHAIN_BLOCKS)):
        return chain
    certificate, key, _ = material.spelling
    raise ConfigurationError(f"{material.place} holds {certificate} but no {key}")


def _identity_facts(identity: pem.Identity) -> IdentityFacts:
    return IdentityFacts(
        name=identity.name,
        dns_name=identity.dns_name,
        names=identity.names,
        not_before=identity.not_before.timestamp(),
        not_after=identity.not_after.timestamp(),
        serial=identity.serial,
    )


# --- manifests ------------------------------------------------------------------------------------------------------


def _manifests(request: ManifestsRequest) -> tuple[Payload, int]:
    """Return the parsed content of every readable file, and the reasons for the others."""
    from sidestep.config.manifests import load_files

    contents: dict[str, bytes] = {}
    unreadable: dict[str, str] = {}
    for name in request.names:
        try:
            contents[name] = _read_file(os.path.join(request.folder, name))  # noqa: PTH118 - open takes a string
        except OSError as error:
            unreadable[name] = error.strerror or str(error)
    _drop_privileges(cpu=MANIFESTS_CPU, wall=MANIFESTS_CPU)
    data = pickle.dumps((load_files(contents), unreadable))
    return Payload(len(data)), sealed_memfd("sidestep-manifests", data)


def _read_file(path: str) -> bytes:
    # The path may have become a FIFO since it was listed; O_NONBLOCK prevents waiting for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return file.read(_MAX_MANIFEST + 1)


# --- variables ------------------------------------------------------------------------------------------------------


def _environment(request: EnvironmentRequest) -> tuple[Payload, int]:
    fd = open_environment(request.pid, request.birth)
    _drop_privileges(cpu=CPU, wall=WALL)
    content = read_environment(fd) or b"\0"
    return Payload(len(content)), sealed_memfd("sidestep-environment", content)


# --- names ----------------------------------------------------------------------------------------------------------


def _names(request: NamesRequest) -> tuple[Payload, int]:
    root = Root(*request.root)
    opened = [(_optional(root, path), path, most) for path, most in _NAMES]
    _drop_privileges(cpu=CPU, wall=WALL)
    texts = ["" if fd is None else read_steady(fd, path)[:most].decode(errors="replace") for fd, path, most in opened]
    data = msgspec.msgpack.encode(Names(*texts))
    return Payload(len(data)), sealed_memfd("sidestep-names", data)


# --- files ----------------------------------------------------------------------------------------------------------


def _send_files(request: FilesRequest, answers: socket.socket) -> None:
    """Answer with a socket and send a snapshot to it. Raises SidestepError before the answer."""
    priorities.yield_to_others()
    opened = container_root.open_container(request.pid, request.birth, request.root)
    _limit(cpu=snapshot.CPU, wall=snapshot.PROGRESS, descriptors=snapshot.DESCRIPTORS)
    reading = opened.reading
    capabilities.become_reader(reading.uid, reading.gid, reading.groups, reads_all=reading.reads_all)
    capabilities.forbid_new_privileges()
    _set_parent_death_signal()
    landlock.deny_writing()
    paths = snapshot.wanted_paths(request.paths, snapshot.volumes(opened.mounts))
    within = snapshot.paths_within(request.paths, paths)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            send_packet(answers, msgspec.msgpack.encode(Streaming()), theirs.fileno())
        walk = snapshot.Walk(
            opened.fd, ours, request.max_bytes, asked=bool(request.paths), within=within, alive=_progress
        )
        walk.run(paths)


def _progress() -> None:
    signal.setitimer(signal.ITIMER_REAL, snapshot.PROGRESS)


# --- the process ----------------------------------------------------------------------------------------------------


def _set_parent_death_signal() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _close_all_but(fd: int) -> None:
    os.closerange(3, fd)
    os.closerange(max(3, fd + 1), 2**31 - 1)


def _send_pidfd(answers: socket.socket) -> None:
    pidfd = os.pidfd_open(os.getpid())
    send_packet(answers, msgspec.msgpack.encode(Started()), pidfd)
    os.close(pidfd)


def _drop_privileges(*, cpu: int, wall: int) -> None:
    """Set limits and permanently drop user, groups and capabilities. Raises KernelError, BugError."""
    _limit(cpu=cpu, wall=wall)
    capabilities.become(READER)
    capabilities.forbid_new_privileges()
    _set_parent_death_signal()  # the kernel clears it when the user changes


def _limit(*, cpu: int, wall: int, descriptors: int = _DESCRIPTORS) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    signal.setitimer(signal.ITIMER_REAL, wall)  # SIGALRM has no handler and ends the process
    limits.apply(memory=MEMORY, descriptors=descriptors, file_size=MAX_PAYLOAD)


def _answer_and_exit(answers: socket.socket, answer: Failed) -> None:
    try:
        send_packet(answers, msgspec.msgpack.encode(answer))
    except SidestepError:
        pass  # the requester has given up
