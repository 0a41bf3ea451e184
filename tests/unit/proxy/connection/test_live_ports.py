"""A port's rules are compiled once, whatever snapshots come after."""

from sidestep.proxy.connection.live_ports import LivePort
from sidestep.snapshots.ports import FilterRow, PortSnapshot, RuleSnapshot


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
