"""Compiles the conditions of inspection rules, and prepares what they are compared with.

A path is looked at in all forms that apps may take it for (`path_forms`), a field by its name with `-` for `_`, because
CGI and WSGI equate them, a query with `&` and with `;` between parameters, and a host as servers choose by it. A
condition of a match holds if it holds for one form, or one of several fields, parameters or hosts; a condition of an
exception only if it holds for every one. So neither encoding leads around a rule.

`needle` derives from a match a regex that occurs in the text of every head that fulfils it. A policy searches for the
needles of all its rules together and evaluates only those rules whose needle is found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import unquote_to_bytes

import msgspec
import re2

from sidestep.model.egress import Network
from sidestep.model.filter import HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.inspection import Match, ParameterCondition
from sidestep.policy.path_forms import paths_of
from sidestep.policy.regex_set import RegexSet
from sidestep.policy.route import Fields

PORT_DIGITS = 5
"""Digits of a port; what has more is taken for a part of the host, which makes that one in doubt."""
MAX_PARAMETERS = 512
"""Query parameters of one request that conditions look at."""

Address = IPv4Address | IPv6Address
Test = Callable[[bytes], bool]

_PLAIN = re.compile(rb"[^%+/\\;#]*(?:/(?![./])[^%+/\\;#]*)*").fullmatch
"""Of a target that has one form only."""
_LINE = b": ".join
_PORT = re.compile(rb":[0-9]*\Z")


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What is known of a connection. `certificate_names` are those of a *verified* client certificate: its subject as
    RFC 2253 writes it, and its DNS, URI and e-mail names; empty without one. `destination`, `port` and `fingerprints`
    (JA3 and JA4) are known of a connection that the pod makes. With `hosts` each request is judged by the host that it
    is for, by what that function says of it, which depends on the host and on the other facts. `is_told`: that the
    connection is not opened as a destination wants has been told. `binds_host`: it was opened as one to `server_name`,
    so a request for another host is judged by both names: `further_names` has the other one, "" for one that servers
    may take for any, so that every rule about names holds for it. Without `binds_host` the name of the host takes the
    place of `server_name`.
    """

    client: Address | None = None
    server_name: str = ""
    certificate_names: tuple[str, ...] = ()
    destination: Address | None = None
    port: int = 0
    fingerprints: tuple[str, ...] = ()
    binds_host: bool = False
    hosts: Callable[[bytes], HostFacts] | None = field(default=None, compare=False)
    is_told: bool = False
    further_names: tuple[str, ...] = ()

    def of_host(self, told: HostFacts) -> ConnectionFacts:
        """The facts by which requests for one host are judged."""
        if not self.binds_host:
            return replace(self, server_name=told.name, hosts=None)
        further = (told.name,) if told.doubt else ()
        return replace(self, further_names=further, hosts=None)


class HostFacts(msgspec.Struct, frozen=True):
    """What is known of the host of a request. `policies` are those that apply, by their display; `doubt` says why the
    request cannot be judged as they want, as `inspected_exchange.Unread`; empty if it can. `judged` are those by whose
    rules that look at connections alone the connection was judged already, without `ConnectionFacts.further_names`.
    `closing` are those that fail closed and may be about the host: where one of them has judged the connection so far,
    a request that is in doubt is refused, also on a connection that is otherwise passed.
    """

    name: str
    policies: frozenset[str]
    doubt: str = ""
    judged: frozenset[str] = frozenset()
    closing: frozenset[str] = frozenset()


def host_of(fields: Fields) -> bytes:
    """The host that a request is for, without its port; empty if it names none."""
    authority = next((value for name, value in fields if name == b"host"), b"")
    host, colon, port = authority.rpartition(b":")
    if not colon or not port.isdigit() or len(port) > PORT_DIGITS or (b":" in host and not host.endswith(b"]")):
        return authority
    return host


class HeadForm(msgspec.Struct, frozen=True):
    """How heads are written, as parts of regexes for whole heads: what stands before the target, what that is made
    of, what follows it, and what follows the name of a field. Names stand behind LF."""

    target: bytes
    text: bytes
    end: bytes
    colon: bytes


HTTP1_HEAD = HeadForm(rb"[^ ]+ ", rb"[^ ]*", b" ", b":")
"""As on the wire (`protocols.http1_skim`)."""
HTTP2_HEAD = HeadForm(rb"(?:.*\n)?:path\n", rb"[^\n]*", rb"\n", rb"\n")
"""As `protocols.http2_skim` writes them."""


def request_text(target: bytes, fields: Fields) -> tuple[bytes, tuple[bytes, ...], bool]:
    """The text of a request in which patterns and needles are searched for: lines of the target's forms and the fields.

    With it the forms of the path (none if it has but one), and whether those are all. Runs for every request: 1 µs for
    ten fields and a plain target.
    """
    head = b"\n".join(map(_LINE, fields))
    if _PLAIN(target) is not None:
        return target + b"\n" + head, (), True
    path, _, query = target.partition(b"?")
    lines = [target]
    if b"%" in target or b"+" in query:
        lines.append(unquote_to_bytes(path) + b"?" + _decoded(query))
    forms, is_complete = paths_of(path)
    return b"\n".join((*lines, *forms[1:], head)), forms, is_complete


def text_of(fields: Fields) -> bytes:
    """The text of a response's head in which patterns are searched for: a line per field."""
    return b"\n".join(map(_LINE, fields))


class RequestFacts:
    """A request's head. `target` is path and query as sent; `fields` have lower-case names and include `host`.

    `paths` are the forms of the path, where they are known.
    """

    __slots__ = ("_parameters", "fields", "method", "paths", "query", "too_many_parameters")

    def __init__(self, method: bytes, target: bytes, fields: Fields, paths: tuple[bytes, ...] = ()) -> None:
        self.method = method
        self.fields = fields
        path, _, self.query = target.partition(b"?")
        self.paths = paths or paths_of(path)[0]
        self._parameters: list[tuple[bytes, bytes, bytes]] | None = None
        self.too_many_parameters = False

    @property
    def parameters(self) -> list[tuple[bytes, bytes, bytes]]:
        """(decoded name, decoded value, value as sent) of the first MAX_PARAMETERS query parameters.

        One with a semicolon stands there as a whole, and in the parts that it is for Ruby's Rack and Perl's CGI.
        """
        if self._parameters is None:
            parts = self.query.split(b"&", MAX_PARAMETERS)
            if b";" in self.query:
                parts += [piece for part in parts if b";" in part for piece in part.split(b";", MAX_PARAMETERS)]
            self.too_many_parameters = len(parts) > MAX_PARAMETERS
            self._parameters = []
            for part in parts[:MAX_PARAMETERS]:
                name, _, value = part.partition(b"=")
                self._parameters.append((_decoded(name), _decoded(value), value))
        return self._parameters


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" ")) if b"%" in text or b"+" in text else text


def plain_address(address: Address) -> Address:
    """An IPv4 address that came mapped into IPv6 (RFC 4291, 2.5.5.2) as itself."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


class CompiledMatch:
    """The conditions of a match or an exception in three parts, by when they can be decided.

    `of_exception`: every form of a path has to fulfil a condition. `of_response`: headers are the response's.
    Raises ConfigurationError for a regex that cannot be compiled.
    """

    __slots__ = (
        "_headers", "_match", "_methods", "_parameters", "_paths", "_quantifier", "_response_headers",
        "on_connection", "on_request", "on_response",
    )  # fmt: skip

    def __init__(self, match: Match, *, of_exception: bool, of_response: bool) -> None:
        self._match = match
        self._quantifier: Callable[[Iterable[bool]], bool] = all if of_exception else any
        headers = [(_hyphened(each.name.encode()), _test(each)) for each in match.filter.headers]
        self._headers = () if of_response else tuple(headers)
        self._response_headers = tuple(headers) if of_response else ()
        self._methods = frozenset(each.encode() for each in match.filter.methods)
        self._paths = tuple(map(_path_test, match.filter.paths))
        self._parameters = tuple((each.name.encode(), _test(each)) for each in match.parameters)
        self.on_connection = match.of_connection
        self.on_request = bool(self._headers or self._methods or self._paths or self._parameters)
        self.on_response = bool(self._response_headers)

    def connection(self, facts: ConnectionFacts) -> bool:
        """Whether the conditions on the connection hold."""
        match = self._match
        if match.sources and not is_in(facts.client, match.sources):
            return False
        if match.networks and not is_in(facts.destination, match.networks):
            return False
        if match.ports and facts.port not in match.ports:
            return False
        if match.fingerprints and not any(each in match.fingerprints for each in facts.fingerprints):
            return False
        if match.server_names:
            names = (facts.server_name, *facts.further_names)
            may_be_any = self._quantifier is any and "" in facts.further_names
            if not (may_be_any or self._quantifier(names_server(match.server_names, name) for name in names)):
                return False
        wanted = match.client_certificates
        return not wanted or any(_names_certificate(each, name) for each in wanted for name in facts.certificate_names)

    def request(self, facts: RequestFacts) -> bool:
        """Whether the conditions on the request hold."""
        if self._methods and facts.method not in self._methods:
            return False
        if self._paths and not self._quantifier(any(test(path) for test in self._paths) for path in facts.paths):
            return False
        if self._headers and not self._hold(self._headers, facts.fields):
            return False
        return not self._parameters or all(
            self._holds([test(decoded) or test(raw) for name, decoded, raw in facts.parameters if name == wanted])
            for wanted, test in self._parameters
        )

    def response(self, fields: Fields) -> bool:
        """Whether the conditions on the response hold."""
        return self._hold(self._response_headers, fields)

    def _hold(self, tests: Iterable[tuple[bytes, Test]], fields: Fields) -> bool:
        return all(
            self._holds([self._on_value(test, wanted, value) for name, value in fields if _hyphened(name) == wanted])
            for wanted, test in tests
        )

    def _on_value(self, test: Test, name: bytes, value: bytes) -> bool:
        return self._quantifier(map(test, hosts_of(value))) if name == b"host" else test(value)

    def _holds(self, results: list[bool]) -> bool:
        """Whether a condition holds, of whose fields or parameters these are the results."""
        return bool(results) and self._quantifier(results)


def hosts_of(value: bytes) -> tuple[bytes, ...]:
    """The forms of a host that differ: as sent, and as servers choose by it: lower case, no port, no dot at its end."""
    lower = value.lower()
    name = _PORT.sub(b"", lower).removesuffix(b".")
    return (value,) if name == value else (value, lower, name)


def _hyphened(name: bytes) -> bytes:
    return name.replace(b"_", b"-")


def _test(condition: HeaderCondition | ParameterCondition) -> Test:
    match condition.test:
        case HeaderTest.EXACT:
            return condition.value.encode().__eq__
        case HeaderTest.PRESENT:
            return lambda _value: True
        case HeaderTest.REGEX:
            return _search(condition.value)


def _path_test(condition: PathCondition) -> Test:
    value = condition.value.encode()
    match condition.test:
        case PathTest.EQUAL:
            return value.__eq__
        case PathTest.PREFIX:
            return lambda path: path.startswith(value)
        case PathTest.REGEX:
            return _search(condition.value)


def _search(regex: str) -> Test:
    # A set of one, because a set is never slower than what the probe of the policy has measured.
    found = RegexSet([regex]).found
    return lambda value: bool(found(value))


def is_in(address: Address | None, networks: Iterable[Network]) -> bool:
    """Whether an address is known and in one of the networks; one mapped into IPv6 counts as IPv4."""
    if address is None:
        return False
    plain = plain_address(address)
    return any(plain in network for network in networks)


def names_server(wanted: Iterable[str], name: str) -> bool:
    """Whether one of `wanted` (`Match.server_names`) stands for a server's name as a client sent it."""
    name = name.lower().rstrip(".")
    return any(name.endswith(each[1:]) if each.startswith("*.") else name == each for each in wanted)


def _names_certificate(wanted: str, name: str) -> bool:
    return name.startswith(wanted[:-1]) if wanted.endswith("*") else name == wanted


def regexes_of(match: Match, path: str) -> Sequence[tuple[str, str]]:
    """(path of the field, regex) of all regexes in a match; `path` is that of the match."""
    found = [
        (f"{path}.headers[{index}].value", each.value)
        for index, each in enumerate(match.filter.headers)
        if each.test is HeaderTest.REGEX
    ]
    found += [
        (f"{path}.paths[{index}].value", each.value)
        for index, each in enumerate(match.filter.paths)
        if each.test is PathTest.REGEX
    ]
    found += [
        (f"{path}.queryParameters[{index}].value", each.value)
        for index, each in enumerate(match.parameters)
        if each.test is HeaderTest.REGEX
    ]
    return found


def needle(match: Match, *, of_response: bool) -> bytes | None:
    """A regex that is found in `RequestFacts.text` of every request that fulfils the match; None if there is none.

    It is for RE2, Latin-1, with ^ and $ for the ends of lines.
    """
    of_target, name = rough_needle(match, of_response=of_response)
    if not name:
        return of_target
    first = match.filter.headers[0]
    line = b"^" + b"[-_]".join(map(_quoted, name.decode().split("-"))) + b": "
    if first.test is not HeaderTest.EXACT:
        return line
    # Of a host there is more than one form.
    return line + (b"(?i:" + _quoted(first.value) + b")" if name == b"host" else _quoted(first.value) + b"$")


def rough_needle(match: Match, *, of_response: bool) -> tuple[bytes | None, bytes]:
    """(regex, b"") if every request that fulfils the match has its needle in the target; (None, name) if each has a
    field of this name (lower case, - for _); (None, b"") if neither is known.
    """
    paths = match.filter.paths
    if paths and not any(each.test is PathTest.REGEX for each in paths):
        return b"|".join(_path_needle(each) for each in paths), b""
    if match.filter.headers and not of_response:
        return None, _hyphened(match.filter.headers[0].name.encode())
    if match.parameters:
        return rb"[?&;]" + _quoted(match.parameters[0].name) + rb"(?:[=&;]|$)", b""
    return None, b""


def head_needle(match: Match, form: HeadForm, *, of_response: bool) -> bytes | None:
    """A regex for the whole text of every head that has a `rough_needle`; None if there is none.

    It is for sound heads whose target has one form only (`odd_target`).
    """
    paths = match.filter.paths
    if paths and not any(each.test is PathTest.REGEX for each in paths):
        exact = rb"(?:[?" + form.end + rb"].*)?"
        values = (_quoted(each.value) + (exact if each.test is PathTest.EQUAL else b".*") for each in paths)
        return form.target + rb"(?:" + b"|".join(values) + rb")"
    if match.filter.headers and not of_response:
        name = _hyphened(match.filter.headers[0].name.encode()).decode()
        return rb".*\n" + b"[-_]".join(map(_quoted, name.split("-"))) + form.colon + b".*"
    if match.parameters:
        name = match.parameters[0].name
        return form.target + form.text + rb"[?&;]" + _quoted(name) + rb"(?:[=&;" + form.end + rb"].*)?"
    return None


def odd_target(form: HeadForm) -> bytes:
    """A regex for the whole text of heads whose target has more forms than one."""
    return form.target + form.text + rb"(?:[%+\\;#]|/[./]).*"


def is_plain(target: bytes) -> bool:
    """Whether a target is a path and query with one form only."""
    return target.startswith(b"/") and _PLAIN(target) is not None


def plain_target(head: bytes) -> bytes | None:
    """The target of an HTTP/1 request head that was validated, if it is a path and query with one form only."""
    target = head.split(b" ", 2)[1]
    return target if is_plain(target) else None


def _path_needle(condition: PathCondition) -> bytes:
    begin = b"^" + _quoted(condition.value)
    return begin + rb"(?:\?|$)" if condition.test is PathTest.EQUAL else begin


def _quoted(text: str) -> bytes:
    quoted: bytes = re2.escape(text.encode())
    return quoted
