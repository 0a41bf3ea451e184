"""The legs that answer one HTTP/1 client: the app's, which may be closed idle and opened anew, and the handlers'; and
those of copies.

An app closes connections that are idle, and the app's leg may be idle while handlers keep the client's busy. So the leg
is replaced before a request meets an app that is about to close it (`_renew_app`). The old leg is `spare` until the new
one is open, and takes its place again when that is refused: an app that shuts down takes no connections, but serves
those it has.

Invariants: `relay.app` is the only app leg that is used, and `responses` reads what it says; at most one handler leg
per intercept uid; a leg that was ended stays in `relay.legs` at least until the shell has seen its ending and written
what waits, and is forgotten when a later leg is made, so that the list does not grow with the number of requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.leg import Ending, Leg, Role
from sidestep.engine.relay import Relay
from sidestep.protocols.http1_responses import ResponseReader

if TYPE_CHECKING:
    from sidestep.engine.http1.state import ConnectionState
    from sidestep.policy.route import Rule
    from sidestep.protocols.http1 import Http1Limits


class Peers:
    """Makes and ends the legs beside the client's."""

    __slots__ = ("_asked", "_ended", "_handlers", "_limits", "_relay", "_state", "responses", "spare")

    def __init__(self, relay: Relay, state: ConnectionState, limits: Http1Limits) -> None:
        self._relay = relay
        self._state = state
        self._limits = limits
        self._asked = False
        self._handlers: dict[str, Leg] = {}
        self._ended: list[Leg] = []
        self.responses = ResponseReader(limits)
        """Follows what the app leg says."""
        self.spare: Leg | None = None
        """The app leg before this one, while this one is being opened."""

    @property
    def app_in_use(self) -> bool:
        """Whether the app was dialled, by us or by the shell."""
        return self._asked or self._relay.app.open

    def ask_app(self) -> Leg:
        """The app leg, for what the app is to be told now; asked for if need be.

        After diverted requests a leg on which the app has been silent for `fresh_seconds` is replaced.
        """
        relay = self._relay
        state = self._state
        if state.app_bypassed:
            state.app_bypassed = False
            app = relay.app
            if app.open and relay.now - app.active > self._limits.fresh_seconds:
                self._renew_app()
        if not self._asked:
            self._asked = True
            if not relay.app.open:
                relay.opening.append(relay.app)
        return relay.app

    def retire_app(self) -> None:
        """The app gave up its idle connection: the next request for it takes a new one."""
        self._relay.app.end(Ending.CLOSE)
        self._replace_app()

    def _renew_app(self) -> None:
        """The next request for the app takes a new connection, and this one if none can be had."""
        self.drop_spare()
        self.spare = self._relay.app
        self._replace_app()

    def _replace_app(self) -> None:
        old = self._relay.app
        self._relay.app = self._make(Leg(old.role, old.rule))
        self._asked = False
        self.responses = ResponseReader(self._limits)

    def drop_spare(self) -> None:
        """The app leg before this one is not needed any more."""
        if self.spare is not None:
            self.spare.end(Ending.CLOSE)
            self.spare = None

    def use_spare(self) -> bool:
        """The app leg was refused: go on with the one before, if there is one."""
        spare, self.spare = self.spare, None
        if spare is None:
            return False
        refused = self._relay.app
        for data in refused.out:
            spare.write(data)
        refused.out.clear()
        refused.queued = 0
        refused.end(Ending.ABORT)
        self._relay.app = spare
        if self._state.answering_leg is refused:
            self._state.answering_leg = spare
        return True

    def handler(self, rule: Rule) -> tuple[Leg, bool]:
        """The handler leg of an intercept, and whether it served before."""
        leg = self._handlers.get(rule.uid)
        if leg is not None:
            return leg, True
        leg = self._handlers[rule.uid] = self._make(Leg(Role.HANDLER, rule))
        self._relay.opening.append(leg)
        return leg, False

    def drop_handler(self, leg: Leg, ending: Ending) -> None:
        """End a handler leg; the next match opens another."""
        if leg.rule is not None and self._handlers.get(leg.rule.uid) is leg:
            del self._handlers[leg.rule.uid]
        self._end(leg, ending)

    def end_all(self, ending: Ending, *, but: Leg | None = None) -> None:
        """End every leg but the client's and one other; the app's leg keeps its spare one."""
        if but is not self._relay.app:
            self.drop_spare()
        for leg in (self._relay.app, *self._handlers.values()):
            if leg is not but:
                self._end(leg, ending)
        self._handlers.clear()

    def _end(self, leg: Leg, ending: Ending) -> None:
        leg.end(ending)
        opening = self._relay.opening
        if leg in opening:  # asked for in this very call: nobody need know
            opening.remove(leg)
            if leg is not self._relay.app:
                self._relay.legs.remove(leg)

    def _make(self, leg: Leg) -> Leg:
        legs = self._relay.legs
        for old in self._ended:
            legs.remove(old)
        self._ended = [old for old in legs if old.ending >= Ending.CLOSE and old.is_over]
        legs.append(leg)
        return leg
