"""SETTINGS hold from the other side's ACK on."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sidestep.engine.http2.pending_settings import PendingSettings
from sidestep.engine.http2.request_decoder import RequestDecoder
from sidestep.engine.http2.state import ConnectionState
from sidestep.protocols.hpack import HpackError
from sidestep.protocols.http2 import DEFAULT_LIMITS, WINDOW, ErrorCode, Http2Error, Setting
from tests.unit.engine.http2.test_exchange import exchange

LIMITS = replace(DEFAULT_LIMITS, pending_settings=2)
LARGE_TABLE = b"\x3f\xe1\x3f"
"""A table size update to 8192 bytes."""


def made(*, mixed: bool = False) -> tuple[ConnectionState, PendingSettings, RequestDecoder]:
    state = ConnectionState(LIMITS)
    state.mixed = mixed
    decoder = RequestDecoder(LIMITS, None)
    return state, PendingSettings(state, decoder), decoder


def initial(size: int) -> tuple[tuple[int, int], ...]:
    return ((Setting.INITIAL_WINDOW_SIZE, size),)


def test_settings_of_the_client_are_taken_in_order() -> None:
    _, settings, _ = made()
    assert settings.acknowledged_by_app() == ()
    settings.client_sent(initial(1))
    settings.client_sent(())
    assert settings.await_app
    assert [settings.acknowledged_by_app(), settings.acknowledged_by_app()] == [initial(1), ()]
    assert not settings.await_app


@pytest.mark.parametrize("side", ["client", "app"])
def test_too_many_are_an_error_while_the_connection_is_transparent(side: str) -> None:
    _, settings, _ = made()
    send = settings.client_sent if side == "client" else settings.app_sent
    send(())
    send(())
    with pytest.raises(Http2Error) as raised:
        send(())
    assert raised.value.code == ErrorCode.ENHANCE_YOUR_CALM


def test_too_many_delay_their_sender_once_it_is_mixed() -> None:
    _, settings, _ = made(mixed=True)
    for _ in range(3):
        settings.client_sent(())
        settings.app_sent(())
    assert (settings.app_owes, settings.client_owes) == (True, True)
    settings.acknowledged_by_app()
    assert (settings.app_owes, settings.client_owes) == (False, True)
    settings.acknowledged_by_client()
    assert not settings.client_owes


def test_a_window_counts_early_when_it_grows_and_late_when_it_shrinks() -> None:
    state, settings, _ = made()
    one = exchange()
    one.room = 1000
    state.streams.divert(one)
    settings.app_sent(initial(WINDOW + 5))
    assert (settings.request_window, one.room) == (WINDOW + 5, 1005)
    settings.acknowledged_by_client()
    settings.app_sent(initial(WINDOW - 5))
    assert (settings.request_window, one.room) == (WINDOW + 5, 1005)
    settings.acknowledged_by_client()
    assert (settings.request_window, one.room) == (WINDOW - 5, 995)
    settings.acknowledged_by_client()
    assert settings.request_window == WINDOW - 5


def test_the_client_may_use_a_larger_table_once_it_has_acknowledged_it() -> None:
    _, settings, decoder = made()
    settings.app_sent(((Setting.HEADER_TABLE_SIZE, 8192),))
    with pytest.raises(HpackError):
        decoder.decode(LARGE_TABLE + b"\x82")
    settings.acknowledged_by_client()
    assert decoder.decode(LARGE_TABLE + b"\x82").fields == ((b":method", b"GET"),)


@pytest.mark.parametrize(("size", "followed"), [(LIMITS.table, True), (LIMITS.table + 1, False)])
def test_a_table_that_is_too_large_is_not_followed(size: int, followed: bool) -> None:
    _, settings, _ = made()
    settings.app_sent(((Setting.HEADER_TABLE_SIZE, size), (Setting.MAX_FRAME_SIZE, 16384)))
    assert settings.table_followed is followed


def test_a_decoded_block_leaves_the_context_until_its_state_is_stored() -> None:
    _, _, decoder = made()
    indexed = b"\x40\x01a\x01b"
    block = decoder.decode(indexed)
    with pytest.raises(HpackError):
        decoder.decode(b"\xbe")
    decoder.state = block.state
    assert decoder.decode(b"\xbe").fields == ((b"a", b"b"),)
