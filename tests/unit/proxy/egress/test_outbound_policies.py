"""The policies of one pod proxy as they change: what judges requests on connections that were there before."""

from ipaddress import ip_address, ip_network

import msgspec
import pytest

from sidestep.engine.classification import Event
from sidestep.engine.outbound import decide, see
from sidestep.model.egress import Destination, EgressMode
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, Egress, InspectionPolicy, Match, Mode, Rule
from sidestep.model.waf import Waf
from sidestep.policy.egress_rows import to_egress_snapshot
from sidestep.policy.inspection_match import ConnectionFacts
from sidestep.policy.seclang import CustomRules
from sidestep.policy.waf import PolicyWaf, alone
from sidestep.proxy.egress.outbound_policies import OutboundPolicies
from sidestep.snapshots.waf import MAX_OUTWARD
from tests.harness.client_hello import hello_of_ssl

WEB = ip_address("198.51.100.7")
FAR = Destination("far", networks=(ip_network("192.0.2.0/24"),))
EVERYWHERE = Destination("all")
PAY = Destination("pay", names=("api.test",))
OTHER = Destination("other", names=("pay.test",))
OPENED = Destination("opened", EgressMode.DECRYPT, names=("api.test",))
FIREWALL = Waf(threshold=7)
ADMIN = Rule("no-admin", Action.BLOCK, match=Match(Filter(paths=(PathCondition(PathTest.PREFIX, "/admin"),))))


def snapshot(name, destination, *rules, waf=None):
    policy = InspectionPolicy(name, "shop", mode=Mode.ENFORCE, egress=Egress((destination,), rules))
    made = to_egress_snapshot(policy)
    settings = waf and alone(PolicyWaf(policy.display, True, True, waf, CustomRules()), 0)
    return msgspec.structs.replace(made, waf=settings)


class Scene:
    """The policies of a pod; connections go to one server."""

    def __init__(self):
        self.changes = 0
        self.policies = OutboundPolicies(self.changed)

    def changed(self):
        self.changes += 1

    def connection(self, first=b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n", *, port=0):
        """What judges the requests of a new connection that begins with this."""
        seen = see(Event.DATA, first)
        port = port or (80 if seen.clear_http else 443)
        decision = decide(self.policies.current, ConnectionFacts(destination=WEB, port=port), seen, 0.0)
        live = self.policies.open(decision, name=seen.name, flow=1)
        return live.inspection.connection(live.outward.facts)

    def firewall(self, connection, host=b"api.test"):
        """What a request is judged by, which the inspector knows."""
        found = follow(connection).of_request(((b"host", host),)).waf
        assert found is None or found.profile in {each.profile for each in self.policies.firewalls.known}
        return found


def follow(connection):
    """As gates do with the next request."""
    latest = connection.inspection.latest
    assert not latest.is_over
    return connection if latest is connection.inspection else latest.connection(connection.facts)


@pytest.fixture
def scene():
    return Scene()


@pytest.mark.parametrize("change", ["added", "edited", "removed"])
def test_a_joined_firewall_that_requests_were_judged_by_outlives_changes_of_other_policies(scene, change):
    mine = [snapshot("a", EVERYWHERE, waf=FIREWALL), snapshot("b", PAY, waf=Waf(paranoia=3, threshold=9))]
    other = snapshot("d", FAR, waf=Waf(threshold=3))
    before, after = {
        "added": ([], [other]),
        "edited": ([other], [snapshot("d", FAR, waf=Waf(threshold=2))]),
        "removed": ([other], []),
    }[change]
    scene.policies.configure([*mine, *before])
    connection = scene.connection()
    for host, names in ((b"api.test", ("shop/a", "shop/b")), (b"other.test", ("shop/a",))):
        assert scene.firewall(connection, host).names == names
    scene.policies.configure([*mine, *after])
    changes = scene.changes
    for host, names in ((b"api.test", ("shop/a", "shop/b")), (b"other.test", ("shop/a",))):
        assert scene.firewall(connection, host).names == names
        assert scene.firewall(scene.connection(), host).names == names
    assert scene.changes == changes, "what was asked for before is joined at once: no request waits for it"


def test_so_do_those_beyond_the_bound_which_are_judged_by_the_rules_of_all(scene):
    hosts = {number: b"h%d.test" % number for number in range(1, 63)}
    mine = [
        snapshot(
            f"p{at}",
            Destination("d", names=tuple(host.decode() for number, host in hosts.items() if number >> at & 1)),
            waf=Waf(excluded=tuple(942100 + other for other in range(6) if other != at)),
        )
        for at in range(6)
    ]
    scene.policies.configure(mine)
    connection = scene.connection()
    for policies in (mine, [*mine, snapshot("q", FAR, waf=Waf(threshold=3))]):
        scene.policies.configure(policies)
        for number, host in hosts.items():
            names = {f"shop/p{at}" for at in range(6) if number >> at & 1}
            assert {*scene.firewall(connection, host).names} == names
    assert len(scene.policies.firewalls.known) == MAX_OUTWARD


def test_a_firewall_that_is_newer_than_a_connection_judges_new_ones_only(scene):
    mine = snapshot("a", EVERYWHERE, waf=FIREWALL)
    scene.policies.configure([mine])
    connection = scene.connection()
    scene.policies.configure([mine, snapshot("b", EVERYWHERE, waf=Waf(paranoia=3))])
    assert scene.firewall(connection).names == ("shop/a",)
    assert scene.firewall(scene.connection()).names == ("shop/a", "shop/b")


def test_without_the_policy_that_opened_a_connection_those_about_other_hosts_go_on_judging_it(scene):
    opening, other = snapshot("a", OPENED, ADMIN), snapshot("b", OTHER, ADMIN, waf=FIREWALL)
    scene.policies.configure([opening, other])
    connection = scene.connection(hello_of_ssl("api.test", ["h2"]))

    def blockers(host):
        exchange = follow(connection).request(b"GET", b"/admin", [(b"host", host)], 0.0)
        return [each.policy for each in exchange.verdict.hits]

    assert blockers(b"api.test") == ["shop/a"]
    assert blockers(b"pay.test") == ["shop/a", "shop/b"]
    scene.policies.configure([other])
    assert blockers(b"api.test") == []
    assert blockers(b"pay.test") == ["shop/b"]
    assert scene.firewall(connection, b"pay.test").names == ("shop/b",)
    scene.policies.configure([])
    assert connection.inspection.latest.is_over


@pytest.mark.parametrize("first", [80, 8080])
def test_connections_that_come_to_be_judged_by_the_same_policies_follow_them_all(scene, first):
    """One is judged by policies of which one goes, the other by those that are left from the start."""
    mine, second = snapshot("a", EVERYWHERE, ADMIN), snapshot("b", Destination("b", ports=(8080,)), ADMIN)
    scene.policies.configure([mine, second])
    connections = [scene.connection(port=port) for port in sorted((80, 8080), key=lambda port: port != first)]
    scene.policies.configure([mine])
    assert len({follow(each).inspection for each in connections}) == 1
    scene.policies.configure([snapshot("a", EVERYWHERE)])
    for each in connections:
        assert not follow(each).request(b"GET", b"/admin", [(b"host", b"api.test")], 0.0).verdict.hits
