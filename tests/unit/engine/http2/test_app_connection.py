"""The life of the relayed connection to the app: every state, every event."""

from __future__ import annotations

import itertools

import pytest

from sidestep.engine.http2.app_connection import TRANSITIONS, AppConnection, AppEvent, AppState
from sidestep.engine.http2.feed import Http2Feed
from sidestep.engine.http2.pending_settings import PendingSettings
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.http2.request_decoder import RequestDecoder
from sidestep.engine.http2.state import ConnectionState
from sidestep.engine.http2.to_client import ToClient
from sidestep.engine.leg import Ending, Leg, Role
from sidestep.policy.route import Route, SteeredPort
from sidestep.protocols.http2 import DEFAULT_LIMITS, SETTINGS_ACK, ErrorCode, goaway

EXPECTED = {
    (AppState.UNPROVEN, AppEvent.SETTINGS): AppState.OPEN,
    (AppState.UNPROVEN, AppEvent.LEFT_IDLE): AppState.UNPROVEN,
    (AppState.UNPROVEN, AppEvent.ENDED): AppState.OVER,
    (AppState.UNPROVEN, AppEvent.UNREACHABLE): AppState.UNPROVEN,
    (AppState.OPEN, AppEvent.SETTINGS): AppState.OPEN,
    (AppState.OPEN, AppEvent.LEFT_IDLE): AppState.RETIRED,
    (AppState.OPEN, AppEvent.ENDED): AppState.OVER,
    (AppState.OPEN, AppEvent.UNREACHABLE): AppState.OPEN,
    (AppState.RETIRED, AppEvent.SETTINGS): AppState.RETIRED,
    (AppState.RETIRED, AppEvent.LEFT_IDLE): AppState.RETIRED,
    (AppState.RETIRED, AppEvent.ENDED): AppState.RETIRED,
    (AppState.RETIRED, AppEvent.UNREACHABLE): AppState.OVER,
    (AppState.OVER, AppEvent.SETTINGS): AppState.OVER,
    (AppState.OVER, AppEvent.LEFT_IDLE): AppState.OVER,
    (AppState.OVER, AppEvent.ENDED): AppState.OVER,
    (AppState.OVER, AppEvent.UNREACHABLE): AppState.OVER,
}


class Parts:
    def __init__(self) -> None:
        self.client = Leg(Role.CLIENT, is_open=True)
        self.leg = Leg(Role.APP, is_open=True)
        self.state = ConnectionState(DEFAULT_LIMITS)
        self.settings = PendingSettings(self.state, RequestDecoder(DEFAULT_LIMITS, None))
        self.to_client = ToClient(
            self.client, self.state, self.settings, Http2Feed(Http2Relay(SteeredPort(80, Route()), tls=False))
        )
        self.app = AppConnection(self.leg, self.state, self.settings, self.to_client)

    def look_idle(self) -> None:
        """Stream 1 was diverted, and nothing else was asked."""
        self.app.on(AppEvent.SETTINGS)
        self.state.mixed = True
        self.state.streams.highest = self.state.streams.highest_diverted = 1

    def written(self) -> bytes:
        return b"".join(self.client.out)


def test_the_expectations_name_every_pair() -> None:
    assert set(EXPECTED) == set(itertools.product(AppState, AppEvent))
    assert set(TRANSITIONS) <= set(EXPECTED)


@pytest.mark.parametrize(("state", "event"), EXPECTED)
def test_every_event_in_every_state(state: AppState, event: AppEvent) -> None:
    app = Parts().app
    app.state = state
    app.on(event)
    assert app.state is EXPECTED[state, event]


@pytest.mark.parametrize("state", AppState)
def test_an_app_has_ended_when_it_is_retired_or_over(state: AppState) -> None:
    app = Parts().app
    app.state = state
    assert app.has_ended is (state in (AppState.RETIRED, AppState.OVER))


def test_a_connection_only_looks_idle_while_handlers_alone_answer() -> None:
    def nothing(_: Parts) -> None:
        pass

    def transparent(parts: Parts) -> None:
        parts.state.mixed = False

    def relayed(parts: Parts) -> None:
        parts.state.streams.relayed[3] = 0

    def asked_last(parts: Parts) -> None:
        parts.state.streams.highest = 3

    def told(parts: Parts) -> None:
        parts.state.streams.goaway = 1

    def in_a_frame(parts: Parts) -> None:
        parts.to_client.middle = True

    def client_ends(parts: Parts) -> None:
        parts.client.end(Ending.CLOSE)

    def app_ends(parts: Parts) -> None:
        parts.leg.end(Ending.FINISH)

    for change in (nothing, transparent, relayed, asked_last, told, in_a_frame, client_ends, app_ends):
        parts = Parts()
        assert not parts.app.only_looks_idle
        parts.look_idle()
        change(parts)
        assert parts.app.only_looks_idle is (change is nothing), change.__name__


def test_retiring_acknowledges_what_the_app_owed() -> None:
    parts = Parts()
    parts.look_idle()
    parts.settings.client_sent(())
    parts.settings.client_sent(())
    parts.app.retire()
    assert parts.app.state is AppState.RETIRED
    assert parts.leg.ending is Ending.CLOSE
    assert parts.written() == SETTINGS_ACK * 2
    assert not parts.settings.await_app


def test_the_client_is_told_once_that_no_app_can_be_reached() -> None:
    parts = Parts()
    parts.app.second_is_unreachable()
    assert parts.written() == b""
    parts.look_idle()
    parts.app.retire()
    parts.app.second_is_unreachable()
    parts.app.second_is_unreachable()
    assert parts.app.state is AppState.OVER
    assert parts.state.streams.goaway == 1
    assert parts.written() == goaway(1, ErrorCode.NO_ERROR)


def test_a_client_that_has_been_told_is_not_told_again() -> None:
    parts = Parts()
    parts.look_idle()
    parts.app.retire()
    parts.state.streams.goaway = 0
    parts.app.second_is_unreachable()
    assert parts.app.state is AppState.OVER
    assert parts.written() == b""
