"""TLS settings of a pod's ports, from the annotations of pod, owners, namespace and node (docs/tls.md).

In: a pod with the annotations of its owners, those of its namespace and those of its node. Out: one `PortTls` for every
TCP port, and one `AnnotationProblem` for every annotation that cannot be used. Invariants:

- The nearest annotation decides, per key and port; the order is pod, owners, namespace, node. It decides even when it
  is invalid, so that a typo never activates a certificate of a more distant object.
- `…-tls-path` and `…-tls-secret` are two forms of one setting. Both on the *same* object is a problem and neither is
  used. On different objects the nearer one wins, so that a pod can override the default of its namespace.
- Only the node may omit `.<port>`; the value is then the default for all ports of its pods. Such a certificate is used
  where a connection speaks TLS, but does not make the port a TLS port (`CertificateScope.DEFAULT`).
- An annotation of a pod or an owner for a port that the pod does not declare is a problem. On a namespace or node it is
  not, because these apply to many pods with different ports.
- A problem affects its own annotation and port only.
- The author of a pod chooses the number of ports and annotations: the work is linear in both. The expensive step
  (suggesting the correct spelling of a misspelt name) runs for the first MAX_HINTS names and is cached.

The certificate store checks later whether a certificate can be read and is valid.
"""

from __future__ import annotations

import difflib
import enum
import functools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from sidestep.config import annotation_names as names
from sidestep.config.annotation_problem import AnnotationProblem, origins
from sidestep.config.annotation_values import parse_folder, parse_probe_timeout, parse_secret_name, parse_switch
from sidestep.model.errors import ConfigurationError
from sidestep.model.pod import Pod, Transport

DEFAULT_PROBE_TIMEOUT = 2.0
"""Seconds."""
MAX_PROBLEMS = 64
"""Problems reported for one pod; the rest are dropped."""

MAX_HINTS = 8
"""Misspelt names of one pod that get a suggestion. A suggestion costs 300 µs."""
REMEMBERED_HINTS = 256
"""Suggestions in the cache. The pods of a namespace usually share their mistakes."""

_T = TypeVar("_T")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


class SourceKind(enum.StrEnum):
    """Kind of place that certificate files come from."""

    PATH = "path"
    SECRET = "secret"  # noqa: S105 - a kind of source, not a secret


class CertificateScope(enum.StrEnum):
    """Scope of the downstream certificate: none, this port, or a node-wide default."""

    NONE = "none"
    PORT = "port"
    DEFAULT = "default"


class ClientAuth(enum.StrEnum):
    """Values of `sidestep.dev/downstream-client-auth` (docs/tls.md)."""

    AUTO = "auto"
    REQUIRE = "require"
    REQUEST = "request"
    NONE = "none"


class CertificateSource(msgspec.Struct, frozen=True):
    """A folder in a container, or a Secret in the pod's namespace.

    `annotation` and `origin` name the annotation that requests it and the object that carries the annotation.
    """

    kind: SourceKind
    value: str
    annotation: str
    origin: str
    scope: CertificateScope = CertificateScope.PORT


class PortTls(msgspec.Struct, frozen=True):
    """TLS settings of one TCP port.

    `containers` lists the containers in which a path is looked up: those that declare the port, otherwise all in spec
    order; the first that has the folder is used. `probe_timeout` is in seconds. `origins` maps the annotation (as
    written) behind each setting to the object that carries it; a setting without an entry has its default.
    """

    port: int
    downstream: CertificateSource | None = None
    downstream_problem: str = ""
    """Why the nearest annotation for the downstream certificate cannot be used, in one line; empty otherwise."""
    upstream: CertificateSource | None = None
    upstream_problem: str = ""
    """The same of the certificate that is shown to the app."""
    skip_verify: bool = False
    probe_timeout: float = DEFAULT_PROBE_TIMEOUT
    client_auth: ClientAuth = ClientAuth.AUTO
    forward_client_cert: bool = False
    late_client_auth: bool = False
    keeps_recent: bool = False
    containers: tuple[str, ...] = ()
    origins: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def certificate_scope(self) -> CertificateScope:
        """Scope of the downstream certificate, as `policy.protocol_choice` needs it."""
        return self.downstream.scope if self.downstream else CertificateScope.NONE


class PodTls(msgspec.Struct, frozen=True):
    """TLS settings by container port, and the problems found."""

    ports: Mapping[int, PortTls]
    problems: tuple[AnnotationProblem, ...] = ()


class _Source(msgspec.Struct, frozen=True):
    """One object that carries annotations. `specific`: it applies to this pod only, so an unknown port is a mistake."""

    origin: str
    annotations: Mapping[str, str]
    specific: bool = False
    any_port: bool = False


class _Found(msgspec.Struct, frozen=True):
    """The annotation that decides one key of one port."""

    annotation: str
    value: str
    source: _Source
    scope: CertificateScope


def resolve(
    pod: Pod,
    *,
    namespace_annotations: Mapping[str, str],
    node_annotations: Mapping[str, str],
    extra_ports: Collection[int] = (),
) -> PodTls:
    """Return the settings of all TCP ports that the pod declares, and of `extra_ports` (undeclared ports in use).

    Never raises: problems are returned in `problems`, at most MAX_PROBLEMS of them.
    """
    sources = _sources(pod, namespace_annotations, node_annotations)
    declared = {port.number for port in pod.ports if port.transport is Transport.TCP}
    ports = sorted(declared | set(extra_ports))
    problems: list[AnnotationProblem] = []
    hints = _Hints()
    for source in sources:
        problems += _misaddressed(pod, source, frozenset(ports), hints, before=len(problems))
    containers = _declaring(pod)
    spoken_of = _ports_spoken_of(sources)
    resolved = {}
    for number in ports:
        plain = PortTls(port=number, containers=containers.get(number, pod.containers))
        spoken = spoken_of is None or number in spoken_of
        resolved[number] = _port(pod, plain, sources, problems) if spoken else plain
    # One invalid default yields one problem, although it was parsed for every port.
    return PodTls(resolved, tuple(dict.fromkeys(problems))[:MAX_PROBLEMS])


def _sources(pod: Pod, namespace: Mapping[str, str], node: Mapping[str, str]) -> tuple[_Source, ...]:
    return (
        *(_Source(origin, written, specific=True) for origin, written in origins(pod)),
        _Source(f"namespace {pod.key.namespace}", namespace),
        _Source("its node", node, any_port=True),
    )


# --- annotations that apply to no port ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Hints:
    """Suggests the correct spelling of misspelt names, at most MAX_HINTS times per pod."""

    left: int = MAX_HINTS

    def closest_name(self, base: str) -> str:
        """Return the known name closest to `base`; "" when there is none or the pod has used up its suggestions."""
        if not self.left:
            return ""
        self.left -= 1
        return _closest(base[:100])


def _misaddressed(
    pod: Pod, source: _Source, ports: frozenset[int], hints: _Hints, *, before: int
) -> list[AnnotationProblem]:
    """Return problems with annotation names of this source: misspelt, without a port, or with an invalid port.

    `before` is the number of problems the pod already has; the search stops at MAX_PROBLEMS in all.
    """
    problems: list[AnnotationProblem] = []
    for annotation, value in source.annotations.items():
        if before + len(problems) >= MAX_PROBLEMS:
            break
        reason = _naming_fault(pod, annotation, source, ports, hints)
        if reason:
            problems.append(AnnotationProblem(annotation, value, reason, f"pod {pod.key}", source.origin))
    return problems


def _naming_fault(pod: Pod, annotation: str, source: _Source, ports: frozenset[int], hints: _Hints) -> str:
    base, dot, suffix = _split(annotation)
    if base not in names.PER_PORT:
        return _spelling_fault(annotation, hints)
    if not dot:
        return "" if source.any_port else f"has no port: write {base}.PORT with the number of a container port"
    if not _PORT.fullmatch(suffix) or int(suffix) > 65535:
        return _suffix_fault(pod, base, suffix)
    number = int(suffix)
    if number in ports or not source.specific:
        return ""
    if any(port.number == number for port in pod.ports):
        return f"the pod declares port {number} for UDP only, which Sidestep does not open"
    there = ", ".join(str(each) for each in sorted(ports)[:16]) or "none"
    return f"the pod has no container port {number} (TCP ports there are: {there})"


def _split(annotation: str) -> tuple[str, str, str]:
    """Split into (base, "." or "", suffix). Searches after the slash only, because the domain contains a dot."""
    domain, slash, rest = annotation.partition("/")
    base, dot, suffix = rest.partition(".")
    return domain + slash + base, dot, suffix


def _spelling_fault(annotation: str, hints: _Hints) -> str:
    if not annotation.startswith(names.LOOKALIKES):
        return ""
    close = hints.closest_name(_split(annotation)[0])
    hint = f": did you mean {close}.PORT?" if close else ""
    return f"is not an annotation that Sidestep knows{hint}"


@functools.lru_cache(maxsize=REMEMBERED_HINTS)
def _closest(name: str) -> str:
    return next(iter(difflib.get_close_matches(name, names.PER_PORT, n=1)), "")


def _suffix_fault(pod: Pod, base: str, suffix: str) -> str:
    for port in pod.ports:
        if port.name and port.name == suffix:
            return f"the port is written as a number: {base}.{port.number}"
    return "what follows the last dot is not a port number from 1 to 65535"


# --- the settings of one port ---------------------------------------------------------------------------------------


def _declaring(pod: Pod) -> dict[int, tuple[str, ...]]:
    """Map each TCP port to the containers that declare it."""
    found: dict[int, dict[str, None]] = {}
    for port in pod.ports:
        if port.transport is Transport.TCP and port.container:
            found.setdefault(port.number, {})[port.container] = None
    return {number: tuple(containers) for number, containers in found.items()}


def _ports_spoken_of(sources: tuple[_Source, ...]) -> frozenset[int] | None:
    """Return the ports that annotations name; None when one of them applies to all ports."""
    found = set()
    for source in sources:
        for annotation in source.annotations:
            base, dot, suffix = _split(annotation)
            if base not in names.PER_PORT:
                continue
            if not dot and source.any_port:
                return None
            if _PORT.fullmatch(suffix):
                found.add(int(suffix))
    return frozenset(found)


def _port(pod: Pod, plain: PortTls, sources: tuple[_Source, ...], problems: list[AnnotationProblem]) -> PortTls:
    """Return the settings of a port that at least one annotation names; `plain` holds its defaults."""
    reader = _Reader(pod, plain.port, sources, problems, {})
    downstream, downstream_problem = reader.certificate(names.DOWNSTREAM_PATH, names.DOWNSTREAM_SECRET)
    upstream, upstream_problem = reader.certificate(names.UPSTREAM_PATH, names.UPSTREAM_SECRET)
    settings = replace(
        plain,
        downstream=downstream,
        downstream_problem=downstream_problem,
        upstream=upstream,
        upstream_problem=upstream_problem,
        skip_verify=reader.value(names.SKIP_VERIFY, parse_switch, default=False),
        probe_timeout=reader.value(names.PROBE_TIMEOUT, parse_probe_timeout, default=DEFAULT_PROBE_TIMEOUT),
        client_auth=reader.value(names.CLIENT_AUTH, _client_auth, default=ClientAuth.AUTO),
        forward_client_cert=reader.value(names.FORWARD_CLIENT_CERT, parse_switch, default=False),
        late_client_auth=reader.value(names.LATE_CLIENT_AUTH, parse_switch, default=False),
        keeps_recent=reader.value(names.RECENT_REQUESTS, parse_switch, default=False),
    )
    return replace(settings, origins=dict(reader.origins))


@dataclass(slots=True)
class _Reader:
    """Reads the keys of one port; records problems and the origin of each value."""

    pod: Pod
    number: int
    sources: tuple[_Source, ...]
    problems: list[AnnotationProblem]
    origins: dict[str, str]

    def value(self, base: str, parse: Callable[[str], _T], *, default: _T) -> _T:
        """Return the nearest value of a key, or `default` when there is none or it is invalid."""
        for source in self.sources:
            found = self._on(source, base)
            if found:
                return self._parsed(found, parse, default)
        return default

    def certificate(self, path_base: str, secret_base: str) -> tuple[CertificateSource | None, str]:
        """Return the nearest certificate source, whether given by path or Secret; and why it cannot be used."""
        before = len(self.problems)
        found = self._nearest(path_base, secret_base)
        return found, "; ".join(problem.text for problem in self.problems[before:])

    def _nearest(self, path_base: str, secret_base: str) -> CertificateSource | None:
        for source in self.sources:
            path, secret = self._on(source, path_base), self._on(source, secret_base)
            if path and secret and path.scope is secret.scope:
                self._problem(path, f"{secret.annotation} is set as well: keep one of the two")
                return None
            # On the node, an annotation for this port takes precedence over the default for all ports.
            found = min((each for each in (path, secret) if each), key=lambda each: each.scope != "port", default=None)
            if found and found is path:
                return self._certificate(found, SourceKind.PATH, parse_folder)
            if found:
                return self._certificate(found, SourceKind.SECRET, parse_secret_name)
        return None

    def _certificate(self, found: _Found, kind: SourceKind, parse: Callable[[str], str]) -> CertificateSource | None:
        value = self._parsed(found, parse, "")
        return CertificateSource(kind, value, found.annotation, found.source.origin, found.scope) if value else None

    def _on(self, source: _Source, base: str) -> _Found | None:
        annotation = f"{base}.{self.number}"
        if annotation in source.annotations:
            return _Found(annotation, source.annotations[annotation], source, CertificateScope.PORT)
        if source.any_port and base in source.annotations:
            return _Found(base, source.annotations[base], source, CertificateScope.DEFAULT)
        return None

    def _parsed(self, found: _Found, parse: Callable[[str], _T], default: _T) -> _T:
        try:
            if not found.value:
                raise ConfigurationError("is empty")
            value = parse(found.value)
        except ConfigurationError as error:
            self._problem(found, error.reason)
            return default
        self.origins[found.annotation] = found.source.origin
        return value

    def _problem(self, found: _Found, reason: str) -> None:
        subject = f"pod {self.pod.key}"
        self.problems.append(AnnotationProblem(found.annotation, found.value, reason, subject, found.source.origin))


def _client_auth(value: str) -> ClientAuth:
    try:
        return ClientAuth(value)
    except ValueError:
        raise ConfigurationError(f"must be one of {', '.join(ClientAuth)}") from None
