"""Puts the parts of one relayed HTTP/2 connection together.

    ConnectionState   mode, streams and limits, which all parts share
    PendingSettings   SETTINGS whose ACK has not passed yet
    AppConnection     the life of the relayed connection to the app
    FromClient        reads the client: frames to the app, requests that a rule wants to `Diversion`
    FromApp           reads the app: frames to the client
    ToApp             writes the app
    ToClient          writes the client: the app's frames, ours at their boundaries, the connection window
    Diversion         diverted streams and the HTTP/2 connections to handlers (`Link`) on which they are answered
    InspectedStreams  what inspection does with streams, if there is a gate; then the diversion is an InspectedDiversion
    Http2Feed         what the mirror is told; AppResponses reads what the app answers, if somebody listens to that

Each part is given the ones it uses, and nothing else: writers and states know no readers, no part knows `Connection`.

    relay -> connection -> from_client -> request_blocks, diverted_data -> diversion -> link_pool, link
                        -> from_app
    all of them -> to_app, to_client, app_connection -> pending_settings -> state -> streams
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.http2.app_connection import AppConnection
from sidestep.engine.http2.app_responses import AppResponses
from sidestep.engine.http2.diversion import Diversion
from sidestep.engine.http2.feed import Http2Feed
from sidestep.engine.http2.from_app import FromApp
from sidestep.engine.http2.from_client import FromClient
from sidestep.engine.http2.inspected_diversion import InspectedDiversion
from sidestep.engine.http2.inspected_streams import InspectedStreams
from sidestep.engine.http2.pending_settings import PendingSettings
from sidestep.engine.http2.request_decoder import RequestDecoder
from sidestep.engine.http2.state import ConnectionState
from sidestep.engine.http2.streams import CLIENT_ENDED
from sidestep.engine.http2.to_app import ToApp
from sidestep.engine.http2.to_client import ToClient

if TYPE_CHECKING:
    from sidestep.engine.http2.pending_settings import Entries
    from sidestep.engine.inspection.gate import Gate
    from sidestep.engine.memory_budget import Budget
    from sidestep.engine.relay import Relay
    from sidestep.engine.rewriting import Rewriter
    from sidestep.policy.route import SteeredPort
    from sidestep.protocols.http2 import Http2Limits


class Connection:
    """See the module."""

    __slots__ = (
        "app",
        "app_responses",
        "budget",
        "decoder",
        "diversion",
        "feed",
        "from_app",
        "from_client",
        "inspected_responses",
        "inspection",
        "settings",
        "state",
        "to_app",
        "to_client",
    )

    def __init__(
        self,
        relay: Relay,
        port: SteeredPort,
        limits: Http2Limits,
        budget: Budget,
        rewriter: Rewriter | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.budget = budget
        self.state = state = ConnectionState(limits)
        self.decoder = decoder = RequestDecoder(limits, rewriter)
        self.settings = settings = PendingSettings(state, decoder)
        self.inspection = inspection = None if gate is None else InspectedStreams(gate)
        self.feed = feed = Http2Feed(relay, inspection)
        self.app_responses = AppResponses(feed, limits) if relay.mirror.hears_responses else None
        """Reads what the app answers, for those who listen; None when nobody can."""
        self.inspected_responses: AppResponses | None = None
        """The same for inspection; None when no rule is about responses, and none are told."""
        if inspection is not None and inspection.hears_responses:
            self.inspected_responses = AppResponses(inspection, limits, inspection)
        self.to_app = to_app = ToApp(relay.app, rewrites=rewriter is not None)
        self.to_client = to_client = ToClient(relay.client, state, settings, feed)
        self.app = app = AppConnection(relay.app, state, settings, to_client)
        if gate is None:
            diversion = Diversion(relay, state, budget, app=app, settings=settings, to_client=to_client, feed=feed)
        else:
            gate.bind(relay)
            diversion = InspectedDiversion(
                gate, relay, state, budget, app=app, settings=settings, to_client=to_client, feed=feed
            )
        self.diversion = diversion
        self.from_app = FromApp(state, app=app, settings=settings, to_client=to_client, feed=feed)
        self.from_client = FromClient(
            port,
            state,
            decoder,
            app=app,
            settings=settings,
            diversion=diversion,
            to_app=to_app,
            to_client=to_client,
            feed=feed,
            rewrites=rewriter is not None,
            inspection=inspection,
        )

    def upgraded(self, entries: Entries) -> None:
        """Begin as HTTP/1.1 left off: stream 1 is the app's, the client's SETTINGS came with its request."""
        self.to_client.apply(entries)
        streams = self.state.streams
        streams.highest = 1
        streams.relayed[1] = CLIENT_ENDED
