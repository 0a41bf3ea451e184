"""The plan of one port, as a table: who wants what, and what the proxy is told."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sidestep.config.annotations import ClientAuth, PortTls
from sidestep.model.filter import Filter
from sidestep.model.intercept import Kind
from sidestep.model.pod import Location, Transport
from sidestep.node.planning.plan import CertificateFacts
from sidestep.node.planning.port_plan import PortPlans, port_plan
from sidestep.policy.pod_ports import ResolvedPort
from sidestep.policy.protocol_choice import choose
from sidestep.policy.survey import PortSurvey, Side
from tests.unit.node.scenes import DNS, HTTPS, intercept, pod

GLOBAL = Filter()
NOTHING = CertificateFacts()
DOWNSTREAM = CertificateFacts("identity:d", "trust:d", "orders.shop")
UPSTREAM = CertificateFacts("identity:u", "trust:u")
BOTH = {Side.DOWNSTREAM: DOWNSTREAM, Side.UPSTREAM: UPSTREAM}
NODE = ("10.0.0.9",)

DIVERTED = intercept("diverted")
WHOLE = intercept("whole", filter=GLOBAL)
WITH_PROBES = intercept("probes", filter=GLOBAL, divert_probes=True)
RESETTING = intercept("resetting", reset_existing=True)
TAP = intercept("tap", kind=Kind.WIRETAP)
WHOLE_TAP = intercept("whole-tap", kind=Kind.WIRETAP, filter=GLOBAL)
ANOTHER_TAP = intercept("another-tap", kind=Kind.WIRETAP, filter=GLOBAL)
HEADS = intercept("heads", kind=Kind.WIRETAP, filter=GLOBAL, heads_only=True)


def surveyed(port=HTTPS, **tls: Any) -> PortSurvey:
    resolved = ResolvedPort(port)
    settings = PortTls(port.number, **tls)
    return PortSurvey(resolved, settings, choose(resolved.facts(settings)))


TOLD: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any]]] = {
    # who wants the port: settings of the port, what the snapshot says
    "one filter": ([DIVERTED], {}, {"rules": ["diverted"], "global_uid": "", "identity": "identity:d"}),
    "filters in their order": ([DIVERTED, TAP], {}, {"rules": ["diverted", "tap"]}),
    "a filter reads, so a key travels": (
        [DIVERTED], {},
        {"client_trust": "trust:d", "upstream_identity": "identity:u", "upstream_trust": "trust:u",
         "upstream_name": "orders.shop"},
    ),
    "the whole port, and no key travels": (
        [WHOLE], {},
        {"rules": [], "global_uid": "whole", "global_display": "shop/n-whole", "identity": "", "client_trust": "",
         "upstream_identity": "", "upstream_trust": "", "upstream_name": ""},
    ),
    "kubelet probes pass a global intercept": ([WHOLE], {}, {"pass_sources": NODE}),
    "unless it takes them": ([WITH_PROBES], {}, {"pass_sources": ()}),
    "a filter diverts no source by address": ([DIVERTED], {}, {"pass_sources": ()}),
    "whole wiretaps, sorted, and no key travels": (
        [WHOLE_TAP, ANOTHER_TAP], {}, {"rules": [], "global_taps": ("another-tap", "whole-tap"), "identity": ""},
    ),
    "a whole wiretap beside a filter": (
        [DIVERTED, WHOLE_TAP], {}, {"rules": ["diverted"], "global_taps": ("whole-tap",), "identity": "identity:d"},
    ),
    "heads only are read": ([HEADS], {}, {"rules": ["heads"], "global_taps": (), "identity": "identity:d"}),
    "an opened port reads for a whole wiretap": (
        [WHOLE_TAP], {"forward_client_cert": True},
        {"rules": ["whole-tap"], "global_taps": (), "identity": "identity:d", "forward_client_cert": True},
    ),
    "an opened port has its key under a global intercept": (
        [WHOLE], {"forward_client_cert": True}, {"rules": [], "global_uid": "whole", "identity": "identity:d"},
    ),
    "settings of the port": (
        [DIVERTED],
        {"client_auth": ClientAuth.REQUIRE, "skip_verify": True, "probe_timeout": 7.5, "late_client_auth": True},
        {"client_auth": "require", "skip_verify": True, "probe_timeout": 7.5, "late_client_auth": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("who", TOLD)
def test_what_the_proxy_is_told(who):
    wanting, settings, told = TOLD[who]
    snapshot = port_plan(surveyed(**settings), pod(), wanting, BOTH, passing=NODE).snapshot
    found = {name: getattr(snapshot, name) for name in told}
    if "rules" in found:
        found["rules"] = [rule.uid for rule in snapshot.rules]
    assert found == told


CREDENTIALS = {
    # facts of both sides: identity, client_trust, upstream_identity, upstream_trust
    "nothing": (NOTHING, NOTHING, ("", "", "", "")),
    "downstream": (DOWNSTREAM, NOTHING, ("identity:d", "trust:d", "", "trust:d")),
    "no CA": (replace(DOWNSTREAM, trust=""), NOTHING, ("identity:d", "", "", "")),
    "a CA alone verifies the app only": (CertificateFacts(trust="trust:d"), NOTHING, ("", "", "", "trust:d")),
    "upstream": (NOTHING, UPSTREAM, ("", "", "identity:u", "trust:u")),
    "the upstream side's CA comes first": (DOWNSTREAM, UPSTREAM, ("identity:d", "trust:d", "identity:u", "trust:u")),
    "the downstream CA stands in": (
        DOWNSTREAM, CertificateFacts("identity:u"), ("identity:d", "trust:d", "identity:u", "trust:d"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("facts", CREDENTIALS)
def test_credentials(facts):
    downstream, upstream, names = CREDENTIALS[facts]
    sides = {Side.DOWNSTREAM: downstream, Side.UPSTREAM: upstream}
    told = port_plan(surveyed(), pod(), [DIVERTED], sides, passing=()).snapshot
    assert (told.identity, told.client_trust, told.upstream_identity, told.upstream_trust) == names


@pytest.mark.parametrize(
    ("wanting", "needs_app", "resets"),
    [
        ([DIVERTED], True, set()),
        ([TAP], True, set()),
        ([WHOLE_TAP], True, set()),
        ([WHOLE], False, set()),
        ([WHOLE, TAP], False, set()),
        ([DIVERTED, RESETTING], True, {"resetting"}),
    ],
)
def test_what_is_done_with_the_port(wanting, needs_app, resets):
    made = port_plan(surveyed(), pod(), wanting, BOTH, passing=())
    assert (made.needs_app, made.resets) == (needs_app, resets)
    assert made.uids == {each.uid for each in wanting}
    assert (made.number, made.transport) == (8443, Transport.TCP)


def test_a_udp_port():
    made = port_plan(surveyed(DNS), pod(), [WHOLE], dict.fromkeys(Side, NOTHING), passing=())
    assert (made.number, made.transport) == (53, Transport.UDP)
    assert made.snapshot.global_uid == "whole"


def test_an_app_is_named_by_the_processes_of_its_containers():
    some = replace(pod(), location=Location(pids={"side": 7, "app": 5}))
    assert port_plan(surveyed(), some, [DIVERTED], BOTH, passing=()).snapshot.app == "app=5 side=7"


class TestPortPlans:
    """Plans that are taken again while nothing they are made of is different."""

    SURVEYED = surveyed()
    POD = pod()

    def rounds(self, *origins: dict[str, Any]) -> list[Any]:
        plans, made = PortPlans(), []
        for origin in origins:
            plans.begin()
            arguments = {
                "surveyed": self.SURVEYED,
                "pod": self.POD,
                "wanting": [DIVERTED],
                "facts": BOTH,
                "passing": (),
            }
            arguments |= {"passing": ()} | origin
            passing = arguments.pop("passing")
            made.append(plans.of(*arguments.values(), passing=passing))
        return made

    def test_the_same_port_keeps_its_plan(self):
        first, second = self.rounds({}, {})
        assert first is second

    @pytest.mark.parametrize(
        "different",
        [
            {"surveyed": surveyed(skip_verify=True)},
            {"pod": replace(pod(), location=Location(pids={"app": 5}))},
            {"wanting": [DIVERTED, TAP]},
            {"facts": {**BOTH, Side.UPSTREAM: NOTHING}},
            {"wanting": [WHOLE], "passing": NODE},
        ],
    )
    def test_a_port_that_is_different_gets_another_one(self, different):
        first, second = self.rounds({}, different)
        assert first != second

    def test_what_a_round_does_not_ask_for_is_forgotten(self):
        plans = PortPlans()
        made = []
        for asks in (True, False, True):
            plans.begin()
            if asks:
                made.append(plans.of(self.SURVEYED, self.POD, [DIVERTED], BOTH, passing=()))
        assert made[0] == made[1]
        assert made[0] is not made[1]
