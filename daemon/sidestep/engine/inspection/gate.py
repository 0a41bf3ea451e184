"""The inspection of one connection, as a relay uses it.

A relay without a gate inspects nothing. With a gate, every request is judged before anything else is decided about it:
a refused one is neither diverted nor copied, and no part of it is written to app or handler unless its head had to go
ahead (`Expect: 100-continue`), or its body exceeded the window where no policy closes.

Policies that are edited apply to running connections from their next request on, unless they ask for more than the
relay was made for: then the connection keeps those with which it began. Without any policies left, nothing more is
judged or told.

Whether a rule applies to a head depends only on the head and on the connection. So heads to which none does, which is
nearly all, are remembered (`is_clean`): a client that repeats one costs a look-up.

With a `firewall` every request is judged: no head is clean. Of calls of gRPC over HTTP/2 it is the head alone, because
the firewall's rules refuse their messages by design. Where the firewall only tells (`tells_later`), heads without a
body are clean as they are without one; whoever forwards such a request has the firewall told of it (`passed`).

With a `sampling` requests are counted, and a share of those to which no rule applies is told to the observer, too
(`samples`): that changes nothing of how they pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from msgspec.structs import replace

from sidestep.engine.inspection.body import is_plain
from sidestep.engine.inspection.judged import Judged
from sidestep.engine.inspection.limits import LIMITS, UNFINISHED, InspectionLimits
from sidestep.engine.inspection.sampling import number_of
from sidestep.engine.memory_budget import INSPECTION, Account, Budget
from sidestep.policy.inspection import is_nothing
from sidestep.protocols.grpc_messages import carries_messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidestep.engine.inspection.connection import Unfinished
    from sidestep.engine.inspection.firewall import Firewall
    from sidestep.engine.inspection.records import Observer
    from sidestep.engine.inspection.sampling import Sampling
    from sidestep.policy.inspection import InspectedConnection, Inspection
    from sidestep.policy.route import Fields


FRAMING: Final = 16 * 1024
"""Bytes of chunk sizes (RFC 9112 section 7.1) that a body may have beside its own, where it is held whole."""
_HTTP2: Final = "h2"


class Clock(Protocol):
    """A relay, as far as it knows the time."""

    now: float


class Gate:
    """See the module. `new_id` makes the names of exchanges: short, and unique in the records of a pod.

    `exempt` are requests, (method, target), of this connection that are neither judged nor told, if they have no body:
    the kubelet's probes.
    """

    __slots__ = (
        "_clean",
        "_clock",
        "_ends",
        "closes",
        "connection",
        "enforces",
        "exempt",
        "firewall",
        "judges_responses",
        "limits",
        "memory",
        "new_id",
        "observer",
        "sampling",
        "tells_later",
        "unfinished",
        "wake",
    )

    def __init__(
        self,
        connection: InspectedConnection,
        observer: Observer,
        new_id: Callable[[], str],
        limits: InspectionLimits = LIMITS,
        sampling: Sampling | None = None,
        *,
        exempt: frozenset[tuple[bytes, bytes]] = frozenset(),
        budget: Budget | None = None,
        firewall: Firewall | None = None,
    ) -> None:
        self.connection = connection
        self.observer = observer
        self.new_id = new_id
        self.limits = limits if firewall is None else _with_room(limits, firewall.settings.body_bytes)
        self.memory = Account(budget or Budget(INSPECTION))
        """What the connection keeps for verdicts."""
        inspection = connection.inspection
        self.closes = inspection.closes
        """What cannot be inspected is refused or closed."""
        self.enforces = inspection.enforces
        """Some rule, or the firewall, blocks."""
        self.exempt = exempt
        self.sampling = sampling
        """Which other requests are told; None: nobody listens, and none is even counted."""
        self.judges_responses = inspection.judges_responses
        """Some rule is about responses."""
        self.firewall = firewall
        """What judges whole requests; None: nothing does."""
        self.wake: Callable[[Callable[[], None]], None] | None = None
        """Set by the shell: calls the relay with what is to be done, and carries out what it decides."""
        self.tells_later = _tells_later(firewall, exempt)
        """Requests without a body to which no rule applies are forwarded, and the firewall is told of them then."""
        # What is exempt here is not exempt on connections of other clients, with which the memory is shared.
        self._clean = None if exempt or self._judges_all else connection.clean
        self._clock: Clock | None = None
        self.unfinished: dict[Unfinished, None] = {}
        """Exchanges of which a part has begun and not ended."""
        self._ends: list[Callable[[], None]] = []

    def bind(self, relay: Clock) -> None:
        """Take the time from this relay: the one that uses the gate."""
        self._clock = relay

    @property
    def now(self) -> float:
        """The time of the input that is being handled (monotonic seconds)."""
        return 0.0 if self._clock is None else self._clock.now

    @property
    def _judges_all(self) -> bool:
        """Whether every request is judged."""
        return self.firewall is not None and not self.tells_later

    @property
    def closing_policy(self) -> str:
        """The first policy that closes what cannot be inspected; the first of all if only an earlier version closed."""
        policies = self.connection.inspection.policies
        return next((each.policy.display for each in policies if each.policy.closes), policies[0].policy.display)

    @property
    def token(self) -> object:
        """The same object for all connections on which a head that is clean on one of them is clean, too.

        Another one each time while newer policies wait for the next request.
        """
        if self.connection.inspection.is_outdated:
            return object()
        return self if self._clean is None else self._clean

    def is_clean(self, head: bytes) -> bool:
        """Whether no rule applies to a head that was remembered."""
        clean = self._clean
        return clean is not None and head in clean

    @property
    def skimmed_for(self) -> Inspection | None:
        """The policies of the port, if heads may be skimmed for them (`Inspection.head_needles`)."""
        inspection = self.connection.inspection
        is_left = inspection.is_outdated or self._judges_all or self.connection.looks_at_all
        return None if is_left else inspection

    @property
    def is_quick(self) -> bool:
        """Whether `rules_out` may tell something: no rule has to look at each request."""
        return not self._judges_all and self.connection.is_quick

    def rules_out(self, head: bytes) -> bool:
        """Whether no rule can apply to an HTTP/1 head that was validated; False when that is not certain."""
        return not self._judges_all and self.connection.rules_out(head)

    def rules_out_request(self, target: bytes, fields: Fields) -> bool:
        """The same for a valid HTTP/2 head."""
        return not self._judges_all and self.connection.rules_out_request(target, fields)

    @property
    def asks(self) -> bool:
        """Whether the answer to each request has to be searched, also to one that `clears`."""
        return bool(self.connection.answer_sets) and not self.exempt and self.firewall is None

    def is_asked(self, head: bytes) -> bool:
        """Whether a head was remembered by `remember_asked`: no rule applies to it, and its answer is searched."""
        asked = self.connection.asked
        return asked is not None and head in asked and self.firewall is None

    def remember_asked(self, head: bytes) -> None:
        """Remember a head, without a body, that `clears` while this `asks`."""
        asked, limits = self.connection.asked, self.limits
        if asked is not None and len(head) <= limits.clean_head and not self.connection.inspection.is_outdated:
            if len(asked) >= limits.clean_heads:
                asked.clear()
            asked[head] = None

    def clears(self, target: bytes, fields: Fields, body: bytes = b"") -> bool:
        """Whether no rule applies to a request that is here, whole, so that `judge` need not be asked.

        False when that is not certain; nothing is counted then. Nothing of another protocol may follow the request. Its
        answer has to be searched if this `asks`.
        """
        if self._judges_all or (body and self.firewall is not None):
            return False
        if body and (len(body) > self.limits.window or not is_plain(fields)):
            return False
        return self.connection.clears(target, fields, body, searches_answer=self.asks)

    def remember_clean(self, head: bytes) -> None:
        """Remember a head for which `judge` returned None."""
        clean, limits = self._clean, self.limits
        if clean is not None and len(head) <= limits.clean_head and not self.connection.inspection.is_outdated:
            if len(clean) >= limits.clean_heads:
                clean.clear()
            clean[head] = None

    def judge(
        self, protocol: str, method: bytes, target: bytes, fields: Fields, *, stream: int = 0, ends: bool = False
    ) -> Judged | None:
        """Judge a request's head; None when no rule can apply to the exchange, or none is to.

        `target` is path and query as sent; `fields` have lower-case names and include `host`. `ends`: nothing of the
        client follows that belongs to the request, neither a body nor another protocol.
        """
        if self.connection.inspection.is_outdated and self._follow().is_over:
            return None
        if self.exempt and ends and (method, target) in self.exempt:
            return None
        connection = self.connection.of_request(fields)
        exchange = connection.request(method, target, fields, self.now)
        firewall = self.firewall
        if firewall is not None and connection is not self.connection:
            firewall = None if connection.waf is None else replace(firewall, settings=connection.waf)
        is_clean = is_nothing(exchange) or (
            ends and not (exchange.matched or exchange.reads_response or exchange.unread)
        )
        if is_clean and firewall is None:
            return None
        number = None
        if self.sampling is not None:
            number = number_of(stream) if stream else self.sampling.number
        judged = Judged(
            self, exchange, protocol=protocol, stream=stream, method=method, target=target, fields=fields,
            number=number, firewall=firewall,
        )  # fmt: skip
        self.ask_ahead(judged, protocol, fields)
        return judged

    def ask_ahead(self, judged: Judged, protocol: str, fields: Fields) -> None:
        """Have the head alone of a gRPC call judged by the firewall."""
        if self.firewall is not None and protocol == _HTTP2 and _is_grpc(fields):
            judged.firewall.ask_ahead()

    def at_end(self, call: Callable[[], None]) -> None:
        """Have this called when the connection is over."""
        self._ends.append(call)

    def break_off(self, *, goes_on: bool = False) -> bool:
        """Learn that nothing more of any exchange is read. Returns whether that has one refused.

        `goes_on`: the connection passes unread from here on, unless one is refused. A request that was being received
        is counted as not inspected then, and so are exchanges beyond `InspectionLimits.unfinished`.
        """
        is_cut = is_refused = False
        unfinished = [*self.unfinished]
        for judged in unfinished[: self.limits.unfinished]:
            is_cut |= judged.break_off() and goes_on
            is_refused |= judged.refusal is not None
        for judged in unfinished[self.limits.unfinished :]:
            judged.abandon()
            is_cut = True
        if is_cut and not is_refused:
            self.uninspected(f"request-{UNFINISHED}", closed=False)
        return is_refused

    def end(self) -> None:
        """Learn that the connection is over, and with it all its exchanges."""
        self.break_off()
        for call in self._ends:
            call()

    def _follow(self) -> Inspection:
        """Judge by the newest policies from now on, if the relay was made for what they ask; return them."""
        latest = self.connection.inspection.latest
        has_firewall = self.firewall is not None
        demands = zip(latest.demands, (self.closes, self.enforces, self.judges_responses, has_firewall), strict=True)
        if not latest.is_over and all(has or not asks for asks, has in demands):
            self.connection = latest.connection(self.connection.facts)
            if self.firewall is not None:
                self.firewall = None if latest.waf is None else replace(self.firewall, settings=latest.waf)
                self.tells_later = _tells_later(self.firewall, self.exempt)
            if self.sampling is not None:
                self.sampling.change(latest.sample_percent)
            self._clean = None if self.exempt or self._judges_all else self.connection.clean
        elif latest.is_over and self.sampling is not None:
            self.sampling.change(0.0)
        return latest

    def firewall_answered(self, call: Callable[[], None]) -> None:
        """Have the relay called, and what it decides carried out; a connection that is over has nobody who does."""
        if self.wake is not None:
            self.wake(call)

    def uninspected(self, reason: str, *, closed: bool) -> None:
        """Tell that a part of the connection is not inspected."""
        self.observer.uninspected(reason, closed=closed)


def _with_room(limits: InspectionLimits, body: int) -> InspectionLimits:
    """Limits with which a body of this size can be held, and decoded, whole."""
    return replace(limits, window=max(limits.window, body + FRAMING), decoded=max(limits.decoded, body + 1))


def _tells_later(firewall: Firewall | None, exempt: frozenset[tuple[bytes, bytes]]) -> bool:
    return firewall is not None and firewall.is_told_later and not exempt


def _is_grpc(fields: Fields) -> bool:
    return carries_messages(value for name, value in fields if name == b"content-type")
