"""Wires from the first byte."""

import pytest

from sidestep.engine.leg import HIGH_WATER, Ending
from sidestep.engine.passthrough import WireRelay
from tests.unit.engine.shell import Shell, rule


def test_the_app_is_asked_for_with_the_first_bytes_and_joined_when_open():
    relay = WireRelay()
    shell = Shell(relay, auto=False)
    assert not shell.waiting
    shell.client(b"hello")
    assert shell.waiting == [relay.app]
    assert relay.wired is None
    shell.open(relay.app)
    assert relay.wired == (relay.client, relay.app)
    assert shell.to_app == b"hello"
    shell.app(b"world")
    assert shell.to_client == b"world"


def test_an_app_that_is_open_already_may_speak_first():
    shell = Shell(WireRelay(), app_open=True)
    shell.app(b"220 ready\r\n")
    assert shell.to_client == b"220 ready\r\n"
    assert shell.relay.wired is not None


@pytest.mark.parametrize("first", ["client", "app"])
def test_half_closes(first):
    shell = Shell(WireRelay())
    relay = shell.relay
    shell.client(b"a")
    one, other = (relay.client, relay.app) if first == "client" else (relay.app, relay.client)
    shell.eof(one)
    assert other.ending is Ending.FINISH
    assert one.ending is Ending.NONE
    shell.receive(other, b"b")
    assert shell.to(one).endswith(b"b")
    shell.eof(other)
    assert relay.done
    assert one.ending is other.ending is Ending.CLOSE


@pytest.mark.parametrize("who", ["client", "app"])
def test_breaks(who):
    shell = Shell(WireRelay())
    relay = shell.relay
    shell.client(b"a")
    shell.lose(getattr(relay, who))
    assert relay.client.ending is relay.app.ending is Ending.ABORT
    assert relay.done


@pytest.mark.parametrize("who", ["client", "app"])
def test_who_breaks_after_its_end_has_said_everything(who):
    shell = Shell(WireRelay())
    relay = shell.relay
    shell.client(b"a")
    shell.app(b"b")
    one = getattr(relay, who)
    other = relay.app if one is relay.client else relay.client
    shell.eof(one)
    assert other.ending is Ending.FINISH
    shell.lose(one)
    assert other.ending is Ending.CLOSE
    assert relay.done


def test_a_client_that_ends_before_the_app_is_open():
    for data in (b"", b"bye"):
        shell = Shell(WireRelay(), auto=False)
        if data:
            shell.client(data)
        shell.eof(shell.relay.client)
        app = shell.relay.app
        assert shell.waiting == [app]
        assert app.ending is Ending.NONE
        shell.open(app)
        assert shell.to_app == data
        assert app.ending is Ending.FINISH
        assert shell.relay.wired is None


def test_a_refused_app_resets_the_client():
    shell = Shell(WireRelay(), auto=False)
    shell.client(b"x")
    shell.refuse(shell.relay.app)
    assert shell.relay.client.ending is Ending.ABORT
    assert shell.relay.done


def test_back_pressure():
    relay = WireRelay()
    relay.receive(relay.client, b"x" * 70_000, 0.0)
    assert not relay.reads(relay.client)
    relay.app.open = True
    relay.opened(relay.app, 0.0)
    assert relay.reads(relay.client)
    relay.receive(relay.client, b"x" * HIGH_WATER, 0.0)
    assert not relay.reads(relay.client)
    assert relay.reads(relay.app)
    relay.receive(relay.app, b"x" * HIGH_WATER, 0.0)
    assert not relay.reads(relay.app)


def test_a_global_intercept_goes_to_its_handler_before_the_client_says_a_word():
    shell = Shell(WireRelay(rule()), auto=False)
    (handler,) = shell.waiting
    assert handler.rule.uid == "uid-dev"
    shell.open(handler)
    assert shell.relay.wired == (shell.relay.client, handler)
    shell.handler(b"220 ready\r\n")
    shell.client(b"EHLO\r\n")
    assert shell.to_client == b"220 ready\r\n"
    assert shell.to_handler == b"EHLO\r\n"
    assert shell.to_app == b""


@pytest.mark.parametrize("ended", [False, True])
def test_a_global_intercept_whose_handler_is_refused_goes_to_the_app(ended):
    shell = Shell(WireRelay(rule()), auto=False)
    handler = shell.waiting[0]
    shell.client(b"hello")
    if ended:
        shell.eof(shell.relay.client)
    shell.refuse(handler)
    assert shell.waiting == [shell.relay.app]
    shell.open(shell.relay.app)
    assert shell.to_app == b"hello"
    assert shell.to_handler == b""
    assert shell.relay.app.ending is (Ending.FINISH if ended else Ending.NONE)
    if not ended:
        assert shell.relay.wired == (shell.relay.client, shell.relay.app)


def test_a_global_intercept_whose_handler_breaks_resets_the_client():
    shell = Shell(WireRelay(rule()))
    shell.client(b"hello")
    shell.lose(shell.handlers[0])
    assert shell.relay.client.ending is Ending.ABORT
    assert shell.relay.done


def test_a_client_that_breaks_before_its_handler_is_open():
    shell = Shell(WireRelay(rule()), auto=False)
    handler = shell.waiting[0]
    shell.lose(shell.relay.client)
    assert handler.ending is Ending.ABORT
    assert shell.relay.done


def test_the_app_may_be_asked_for_at_once():
    relay = WireRelay(at_once=True)
    shell = Shell(relay, auto=False)
    assert shell.waiting == [relay.app]
    shell.open(relay.app)
    assert relay.wired == (relay.client, relay.app)
    assert WireRelay(rule(), at_once=True).app.open is False


def test_an_app_that_speaks_first_and_an_end_before_any_byte_ask_for_the_app():
    shell = Shell(WireRelay(), auto=False)
    shell.eof(shell.relay.client)
    assert shell.waiting == [shell.relay.app]
    shell.open(shell.relay.app)
    assert shell.relay.app.ending is Ending.FINISH
    assert shell.relay.wired is None


def test_what_comes_after_an_end_of_ours_is_dropped():
    shell = Shell(WireRelay())
    relay = shell.relay
    shell.client(b"a")
    shell.eof(relay.app)
    relay.receive(relay.app, b"late", 0.0)
    assert shell.to_client == b""
    shell.client(b"b")
    assert shell.to_app == b"ab"
    shell.eof(relay.client)
    relay.receive(relay.client, b"late", 0.0)
    assert shell.to_app == b"ab"


def test_a_leg_that_is_no_part_of_it_changes_nothing():
    relay = WireRelay(rule())
    shell = Shell(relay)
    shell.client(b"a")
    stranger = relay.app
    relay.receive(stranger, b"x", 0.0)
    relay.receive_eof(stranger, 0.0)
    relay.refused(stranger, 0.0)
    relay.lost(stranger, 0.0)
    relay.opened(stranger, 0.0)
    assert not relay.done
    assert relay.wired == (relay.client, shell.handlers[0])
    assert shell.to_client == b""
