"""A port's rules are compiled once, whatever snapshots come after."""

import gc
import weakref

import msgspec
import pytest

from sidestep.engine.relay import OnUnreadable
from sidestep.model.inspection import Action, ExistingConnections, InspectionPolicy, Mode
from sidestep.model.inspection import Rule as InspectionRule
from sidestep.policy.inspection_rows import to_snapshot
from sidestep.proxy.connection.live_ports import CompiledPolicies, LivePort
from sidestep.proxy.connection.protocol_probe import UNKNOWN, ProbeResult
from sidestep.proxy.control.messages import LoggedRequest
from sidestep.proxy.mirror.recent_requests import KEEPER
from sidestep.snapshots.filter_row import FilterRow
from sidestep.snapshots.ports import PortSnapshot, RuleSnapshot


def rule(uid, pattern="a"):
    conditions = (FilterRow("header", "regex", "x-dev", pattern),)
    return RuleSnapshot(uid=uid, display=f"shop/{uid}", kind="intercept", conditions=conditions, divert_probes=False)


def snapshot(*rules):
    return PortSnapshot(8443, "tcp", "probe", "probe", rules)


def test_a_rule_that_stays_is_not_compiled_again():
    port = LivePort(snapshot(rule("a"), rule("b")))
    a, b = port.steered.route.intercepts
    port.replace(snapshot(rule("b"), rule("c"), rule("a")))
    assert [each.uid for each in port.steered.route.intercepts] == ["b", "c", "a"]
    assert port.steered.route.intercepts[0] is b
    assert port.steered.route.intercepts[2] is a


def test_a_rule_that_changes_is():
    port = LivePort(snapshot(rule("a")))
    [before] = port.steered.route.intercepts
    port.replace(snapshot(rule("a", "b")))
    [after] = port.steered.route.intercepts
    assert not before.matches(b"GET", b"/", ((b"x-dev", b"b"),))
    assert after.matches(b"GET", b"/", ((b"x-dev", b"b"),))


def flows(uid, *conditions, statuses=(), since=0.0, last=0):
    return RuleSnapshot(
        uid=uid, display=f"shop/{uid}", kind="wiretap", conditions=conditions, divert_probes=False, heads_only=True,
        statuses=statuses, since=since, last=last,
    )  # fmt: skip


SOME = FilterRow("header", "exact", "x-dev", "ada")


@pytest.mark.parametrize(
    ("rules", "recent", "source"),
    [
        ((), False, None),
        ((rule("a"),), False, None),
        ((rule("a"),), True, KEEPER.uid),
        ((flows("f", SOME),), False, None),
        ((flows("f", statuses=("5xx",)),), False, None),
        ((flows("f", SOME), flows("all"), flows("too")), False, "all"),
        ((flows("all"),), True, "all"),
    ],
)
def test_requests_are_kept_while_somebody_is_shown_all_of_them_or_asked_for_it(rules, recent, source):
    port = LivePort(msgspec.structs.replace(snapshot(*rules), recent=recent))
    assert port.recent.source == source
    assert (KEEPER in port.steered.route.wiretaps) == (source == KEEPER.uid)
    assert port.has_wiretaps == bool(port.steered.route.wiretaps)


def test_what_was_kept_outlives_the_session_and_not_the_port():
    port = LivePort(snapshot(rule("a"), flows("all")))
    port.recent.keep(LoggedRequest("all", 8443, "::1", 1, "GET", "/", "a", True), 1.0)
    port.replace(snapshot(rule("a")))
    assert (port.recent.source, len(port.recent)) == (None, 1)
    port.replace(msgspec.structs.replace(snapshot(rule("a")), recent=True))
    assert (port.recent.source, len(port.recent)) == (KEEPER.uid, 1)
    port.retire()
    assert (port.recent.source, len(port.recent), port.has_wiretaps) == (None, 0, False)


def test_nothing_is_kept_where_other_processes_serve_the_port_too():
    """It would be a part of the requests, and nobody would see that it is."""
    port = LivePort(msgspec.structs.replace(snapshot(flows("all")), recent=True))
    port.recent.keep(LoggedRequest("all", 8443, "::1", 1, "GET", "/", "a", True), 1.0)
    port.stand_alone(False)
    assert (port.recent.source, len(port.recent)) == (None, 0)
    port.replace(snapshot(flows("all"), flows("f", last=5)))
    assert (port.recent.source, port.was_kept) == (None, False)
    port.stand_alone(True)
    assert port.recent.source == "all"


def test_a_session_is_told_once_of_earlier_requests_and_whether_there_could_be_any():
    port = LivePort(snapshot(rule("a")))
    assert port.take_newcomers() == ()
    port.replace(snapshot(rule("a"), flows("f", last=5)))
    [first] = port.take_newcomers()
    assert (first.uid, first.shown.last, port.was_kept, port.serves("f")) == ("f", 5, False, True)
    port.replace(snapshot(rule("a")))
    assert not port.serves("f")
    port.replace(snapshot(rule("a"), flows("f", last=5), flows("g", since=60.0)))
    assert [each.uid for each in port.take_newcomers()] == ["g"]
    assert port.take_newcomers() == ()
    port.replace(snapshot(rule("a"), flows("f", last=5), flows("g", since=60.0), flows("h", since=1.0)))
    assert port.was_kept


class Probing:
    """A probe that is under way."""

    cancelled = False

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def learnt():
    """A port about whose app something was found out, while a probe is under way."""
    port = LivePort(snapshot(rule("a")))
    port.probe_result = ProbeResult(True, http2=True)
    port.probe = Probing()
    port.server_first = True
    return port


def test_what_was_found_out_about_an_app_is_forgotten_with_its_process(learnt):
    probe = learnt.probe
    learnt.replace(msgspec.structs.replace(learnt.snapshot, app="another"))
    assert (learnt.probe_result, learnt.probe, learnt.server_first) == (UNKNOWN, None, False)
    assert probe.cancelled


def test_another_snapshot_of_the_same_app_keeps_the_result_of_the_probe(learnt):
    learnt.replace(snapshot(rule("b")))
    assert learnt.probe_result == ProbeResult(True, http2=True)
    assert learnt.probe is not None
    assert not learnt.server_first


def test_a_retired_port_matches_nothing_and_leaves_no_probe(learnt):
    probe, steered = learnt.probe, learnt.steered
    learnt.retire()
    assert not steered.route.intercepts
    assert probe.cancelled


def test_late_client_authentication_is_known_from_the_daemon_or_seen_here():
    assert LivePort(msgspec.structs.replace(snapshot(), late_client_auth=True)).late_client_auth
    port = LivePort(snapshot())
    assert not port.late_client_auth
    port.learn_late_client_auth()
    port.replace(snapshot(rule("a")))
    assert port.late_client_auth


def test_a_port_closes_what_it_cannot_read_where_clients_are_told_to_the_app():
    port = LivePort(snapshot())
    assert port.on_unreadable is OnUnreadable.PASS
    port.replace(msgspec.structs.replace(snapshot(), forward_client_cert=True))
    assert port.on_unreadable is OnUnreadable.CLOSE


def policy(name="p", **fields):
    return to_snapshot(InspectionPolicy(name, "shop", rules=(InspectionRule("all", Action.BLOCK),), **fields))


def test_a_policy_of_several_ports_is_compiled_once_and_forgotten_with_the_last():
    compiled = CompiledPolicies()
    ports = [LivePort(msgspec.structs.replace(snapshot(), policies=(policy(),)), compiled) for _ in range(2)]
    [first], [second] = (port.inspection.policies for port in ports)
    assert first is second
    ports[0].replace(msgspec.structs.replace(snapshot(), policies=(policy("a"), policy())))
    assert ports[0].inspection.policies[1] is first
    known = weakref.ref(first)
    del first, second, ports
    gc.collect()
    assert known() is None


def test_connections_that_began_with_policies_are_told_of_newer_ones():
    wanted = msgspec.structs.replace(snapshot(), policies=(policy(),))
    port = LivePort(wanted)
    began = port.inspection
    port.replace(wanted)
    assert not began.is_outdated
    port.replace(msgspec.structs.replace(wanted, policies=(policy(mode=Mode.ENFORCE),)))
    assert began.latest is port.inspection
    port.replace(snapshot())
    assert began.latest.is_over
    port.replace(wanted)
    assert not port.inspection.is_outdated
    began = port.inspection
    port.retire()
    assert began.is_over


def test_a_policy_that_is_new_or_edited_may_reset_older_connections():
    def applies(*policies):
        return msgspec.structs.replace(snapshot(), policies=policies)

    keeps, resets = policy("a"), policy("b", existing_connections=ExistingConnections.RESET)
    port = LivePort(applies(keeps))
    assert not port.resets(applies(policy("a", mode=Mode.ENFORCE)))
    assert port.resets(applies(keeps, resets))
    port.replace(applies(keeps, resets))
    assert not port.resets(applies(resets))
    assert port.resets(applies(policy("b", mode=Mode.ENFORCE, existing_connections=ExistingConnections.RESET)))
