"""From an alert to the change of a policy: what it says, what it joins with, and what the changed policy lets pass."""

from ipaddress import ip_address

import pytest
from msgspec.structs import replace

from sidestep.config.inspection import inspection_policy
from sidestep.model.waf import REQUEST_LINE, REQUEST_LINE_OF_CRS
from sidestep.policy.accepted_policy import Outcome, accept
from sidestep.policy.exceptions import AlertFacts, By, changes
from sidestep.policy.inspection import Inspection
from sidestep.policy.inspection_match import ConnectionFacts
from sidestep.policy.seclang import rule_id

CLIENT = "203.0.113.9"
FACTS = AlertFacts("shop/orders", "no-admin", False, "", "GET", "/admin/users", CLIENT, "10.0.0.7", False)
ADMIN = {"match": "Prefix", "value": "/admin"}


def document(exception=None, *, name="orders", direction="Request", **spec):
    rule = {"name": "no-admin", "action": "Block", "direction": direction, "match": {"paths": [ADMIN]}}
    if exception is not None:
        rule["except"] = exception
    made = {"podSelector": {}, "mode": "Enforce", "rules": [rule], **spec}
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": made}


def with_waf(*excluded, name="orders"):
    made = document(name=name, waf={"excludeRules": list(excluded)})
    return inspection_policy(made)


def applied(written, change):
    """The policy as it is once its rule says what the change says."""
    [rule] = written["spec"]["rules"]
    [changed] = change.spec["rules"]
    assert changed["name"] == rule["name"]
    return inspection_policy({**written, "spec": {**written["spec"], "rules": [{**rule, **changed}]}})


def outcome(policy, target, method=b"GET", client=CLIENT):
    connection = Inspection([accept(policy)]).connection(ConnectionFacts(ip_address(client)))
    return connection.request(method, target, (), 0.0).verdict.outcome


def changed(facts=FACTS, written=None, by=By.REQUEST):
    [change] = changes(facts, [inspection_policy(written or document())], by=by, is_whole=True)
    return change


def test_a_rule_excepts_the_request_and_nothing_else():
    written = document()
    change = changed(written=written)
    assert change.spec == {
        "rules": [
            {
                "name": "no-admin",
                "except": {"methods": ["GET"], "paths": [{"match": "Equal", "value": "/admin/users"}]},
            }
        ]
    }
    policy = applied(written, change)
    assert outcome(policy, b"/admin/users?x=1") is Outcome.PASS
    assert outcome(policy, b"/admin/users", b"DELETE") is Outcome.BLOCK
    assert outcome(policy, b"/admin/users/7") is Outcome.BLOCK
    assert outcome(policy, b"/admin/users/../keys") is Outcome.BLOCK


def test_a_rule_excepts_the_client():
    written = document()
    change = changed(written=written, by=By.SOURCE)
    assert change.spec["rules"][0]["except"] == {"sources": [f"{CLIENT}/32"]}
    policy = applied(written, change)
    assert outcome(policy, b"/admin/users") is Outcome.PASS
    assert outcome(policy, b"/admin/users", client="203.0.113.8") is Outcome.BLOCK


@pytest.mark.parametrize(
    ("path", "paths"),
    [("/admin/a%2Fb", ["/admin/a%2Fb", "/admin/a/b"]), ("/admin//x", None), ("/admin/%41", ["/admin/%41", "/admin/A"])],
)
def test_all_that_apps_may_take_a_path_for_is_excepted(path, paths):
    written = document()
    change = changed(replace(FACTS, path=path), written)
    told = [each["value"] for each in change.spec["rules"][0]["except"]["paths"]]
    assert path in told
    assert paths is None or told == paths
    assert outcome(applied(written, change), path.encode()) is Outcome.PASS


@pytest.mark.parametrize("path", [None, "/admin/%20", "/admin/%ff", "/admin/" + "%2e%2e/;a/" * 300])
def test_where_no_condition_can_name_the_request_the_client_is_excepted(path):
    change = changed(replace(FACTS, path=path))
    assert change.spec["rules"][0]["except"] == {"sources": [f"{CLIENT}/32"]}
    assert "the exception is about the client instead" in change.notes[0]


def test_of_an_answer_the_client_is_the_destination():
    facts = replace(FACTS, source="10.0.0.7", destination=CLIENT, is_answered=True)
    written = document(direction="Response")
    assert changed(facts, written, By.SOURCE).spec["rules"][0]["except"] == {"sources": [f"{CLIENT}/32"]}
    # A request that ended late has a status, too.
    late = replace(FACTS, is_answered=True)
    assert changed(late, document(), By.SOURCE).spec["rules"][0]["except"] == {"sources": [f"{CLIENT}/32"]}
    [unknown] = changes(facts, [], by=By.SOURCE, is_whole=False)
    assert unknown.spec["rules"][0]["except"] == {"sources": [f"{CLIENT}/32"]}


def test_an_address_of_ipv4_within_ipv6_is_itself():
    facts = replace(FACTS, source=f"::ffff:{CLIENT}")
    assert changed(facts, by=By.SOURCE).spec["rules"][0]["except"] == {"sources": [f"{CLIENT}/32"]}


def test_requests_join_requests():
    before = {"methods": ["GET"], "paths": [{"match": "Prefix", "value": "/admin/public"}]}
    written = document(before)
    change = changed(written=written)
    assert change.spec["rules"][0]["except"] == {
        "methods": ["GET"],
        "paths": [{"match": "Prefix", "value": "/admin/public"}, {"match": "Equal", "value": "/admin/users"}],
    }
    policy = applied(written, change)
    assert outcome(policy, b"/admin/users") is outcome(policy, b"/admin/public/a") is Outcome.PASS
    other = changed(replace(FACTS, method="PUT"), written)
    assert other.spec["rules"][0]["except"]["methods"] == ["GET", "PUT"]
    assert "each of its methods on each of its paths" in other.notes[0]
    all_methods = changed(written=document({"paths": before["paths"]}))
    assert "methods" not in all_methods.spec["rules"][0]["except"]


def test_clients_join_clients():
    change = changed(written=document({"sources": ["10.0.0.0/8"]}), by=By.SOURCE)
    assert change.spec["rules"][0]["except"] == {"sources": ["10.0.0.0/8", f"{CLIENT}/32"]}


@pytest.mark.parametrize(
    ("exception", "by", "told"),
    [
        ({"sources": ["10.0.0.0/8"]}, By.REQUEST, "`except` says `sources` already"),
        ({"methods": ["GET"]}, By.REQUEST, "`except` says `methods` already"),
        ({"paths": [ADMIN], "headers": [{"name": "x", "value": "y"}]}, By.REQUEST, "`headers` and `paths` already"),
        ({"paths": [ADMIN]}, By.SOURCE, "`except` says `paths` already"),
        ({"sources": [CLIENT]}, By.SOURCE, "has this client already"),
        ({"paths": [{"match": "Equal", "value": "/admin/users"}]}, By.REQUEST, "has this request already"),
        ({"paths": [{"match": "Equal", "value": f"/{n}"} for n in range(32)]}, By.REQUEST, "at most 32 are possible"),
        ({"sources": [f"10.0.0.{n}" for n in range(256)]}, By.SOURCE, "256 sources already"),
    ],
)
def test_what_cannot_be_said_in_one_exception_is_told(exception, by, told):
    change = changed(written=document(exception), by=by)
    assert change.spec == {}
    assert told in change.notes[-1]


def test_a_rule_that_has_gone_and_a_policy_that_is_not_known():
    gone = changed(replace(FACTS, rule="cards"))
    assert (gone.spec, gone.notes) == ({}, ("the policy has no rule cards any more",))
    [unknown] = changes(FACTS, [], by=By.REQUEST, is_whole=False)
    assert unknown.spec == changed().spec
    assert "is not known" in unknown.notes[0]


# --- the firewall ---------------------------------------------------------------------------------------------------


def waf(found, *policies, is_whole=True, by=By.REQUEST, path="/notes"):
    facts = replace(FACTS, rule="WAF", is_of_firewall=True, found=found, path=path)
    return changes(facts, policies, by=by, is_whole=is_whole)


def excepting(*rules, path="/notes"):
    return {"rules": list(rules), "paths": [{"match": "Equal", "value": path}]}


def test_the_firewall_excepts_what_matched_on_the_path_and_keeps_what_it_excepts_already():
    before = [excepting(941100, path="/wiki"), {"rules": [932100], "parameters": ["q"]}]
    written = inspection_policy(document(waf={"excludeRules": [942190], "exceptions": before}))
    [change] = waf("942100 942190 949110 980130", written)
    assert change.spec == {"waf": {"exceptions": [*before, excepting(942100)]}}
    inspection_policy(document(waf=change.spec["waf"]))
    assert any("in requests of /notes: 942100, 942190" in each for each in change.notes)
    [again] = waf("942100 942190", inspection_policy(document(waf={"excludeRules": [942190], **change.spec["waf"]})))
    assert (again.spec, again.notes) == ({}, ("942100, 942190 is left out of requests of /notes already",))


def test_by_port_the_firewall_leaves_out_what_matched_and_keeps_what_is_left_out_already():
    [change] = waf("942100 942190 949110 980130", with_waf(920420), by=By.PORT)
    assert change.spec == {"waf": {"excludeRules": [920420, 942100, 942190]}}
    inspection_policy(document(waf=change.spec["waf"]))
    assert "942100, 942190" in change.notes[-1]


@pytest.mark.parametrize("path", [None, "/a%20b", "/a/../b", "/a;b", "/" + "a" * 600, "*"])
def test_a_path_that_no_exception_can_name_leaves_the_port(path):
    [change] = waf("942100", with_waf(), path=path)
    assert change.spec == {"waf": {"excludeRules": [942100]}}
    assert "no exception can name the path of the request" in change.notes


def test_every_policy_of_the_port_has_to_leave_it_out():
    plain = inspection_policy(document(name="plain"))
    policies = with_waf(920420, name="a"), plain, with_waf(942100, name="b"), with_waf(name="c")
    found = waf("942100", *policies, by=By.PORT)
    assert [each.policy for each in found] == ["shop/a", "shop/c"]
    assert [each.spec["waf"]["excludeRules"] for each in found] == [[920420, 942100], [942100]]
    assert "once all of these policies" in found[0].notes[-1]
    narrow = waf("942100", *policies)
    assert [each.policy for each in narrow] == ["shop/a", "shop/c"]
    assert all(each.spec == {"waf": {"exceptions": [excepting(942100)]}} for each in narrow)
    [partly] = waf("942100", with_waf(), is_whole=False)
    assert "other policies of the port" in partly.notes[-1]
    [unknown] = waf("942100", is_whole=False)
    assert unknown.spec == {"waf": {"exceptions": [excepting(942100)]}}
    assert "add to it" in unknown.notes[-2]


def test_a_policy_without_room_for_an_exception_says_so():
    full = [excepting(942100, path=f"/{number}") for number in range(64)]
    [change] = waf("911100", inspection_policy(document(waf={"exceptions": full})))
    assert change.spec == {}
    assert "no room" in change.notes[0]


def test_a_rule_of_a_policy_has_no_exception_by_port():
    change = changed(by=By.PORT)
    assert change.spec == {}
    assert "take it out there" in change.notes[0]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("over-limit", "exceeds a limit"),
        ("949110", "no rule of the Core Rule Set"),
        ("9900005 949110", "rule 9900005 refuses what cannot be read"),
        (f"{rule_id(0, 7)}", "rule 7 stands in the ConfigMap of shop/orders"),
        (f"{rule_id(3, 7)}", "rule 7 stands in the ConfigMap of a policy"),
        ("", "no rule of the Core Rule Set"),
    ],
)
def test_what_the_firewall_cannot_leave_out_is_told(found, told):
    [change] = waf(found, with_waf())
    assert change.spec == {}
    assert any(told in each for each in change.notes)


def test_what_is_left_out_already_is_told():
    for by, where in ((By.PORT, "any request of the port"), (By.REQUEST, "requests of /notes")):
        [change] = waf("942100", with_waf(942100), by=by)
        assert (change.spec, change.notes) == ({}, (f"942100 is left out of {where} already",))


def test_a_full_list_is_told():
    full = tuple(range(942_000, 942_256))
    [change] = waf("911100", with_waf(*full), by=By.PORT)
    assert change.spec == {}
    assert "more than 256 rules" in change.notes[0]


def test_the_rule_in_the_place_of_another_is_left_out_by_its_number():
    [change] = waf(f"{REQUEST_LINE}", with_waf(), by=By.PORT)
    assert change.spec == {"waf": {"excludeRules": [REQUEST_LINE_OF_CRS]}}


OUTWARD = replace(FACTS, is_outward=True)


def outward(rule=None, **egress):
    """A policy that has the same rule about what pods send, after another one of its name about what they receive."""
    written = document()
    block = {"rules": [{"name": "no-admin", "action": "Block", "match": {"paths": [ADMIN]}, **(rule or {})}], **egress}
    return {**written, "spec": {**written["spec"], "egress": block}}


def test_what_a_pod_sends_is_excepted_from_rules_of_egress():
    request = {"methods": ["GET"], "paths": [{"match": "Equal", "value": "/admin/users"}]}
    wanted = {"egress": {"rules": [{"name": "no-admin", "except": request}]}}
    assert changed(OUTWARD, outward()).spec == wanted
    for by, why in ((By.SOURCE, "the client is the pod itself"), (By.PORT, "take it out there")):
        change = changed(OUTWARD, outward(), by)
        assert (change.spec, why in str(change.notes)) == ({}, True)
    unnamed = changed(replace(OUTWARD, path=None), outward())
    assert (unnamed.spec, "the client instead" in str(unnamed.notes)) == ({}, False)
    bound = outward({"except": {"paths": [ADMIN], "networks": ["192.0.2.0/24"]}})
    assert "`paths` and `networks`" in str(changed(OUTWARD, bound).notes)


def test_what_a_pod_sends_is_excepted_from_the_firewall_of_egress():
    facts = replace(OUTWARD, rule="WAF", is_of_firewall=True, found="942100")
    paths = [{"match": "Equal", "value": "/admin/users"}]
    change = changed(facts, outward(waf={"excludeRules": [920420]}))
    assert change.spec == {"egress": {"waf": {"exceptions": [{"rules": [942100], "paths": paths}]}}}
    change = changed(facts, outward(waf={}), By.PORT)
    assert change.spec == {"egress": {"waf": {"excludeRules": [942100]}}}
    assert "the firewall no longer looks for this in any request to the destinations: 942100" in change.notes


@pytest.mark.parametrize("by", By)
@pytest.mark.parametrize("is_of_firewall", [False, True])
def test_nothing_is_said_of_ports_and_clients_where_a_pod_sends(by, is_of_firewall):
    facts = replace(OUTWARD, is_of_firewall=is_of_firewall, found="942100")
    for policies in ([inspection_policy(outward(waf={}))], []):
        for change in changes(facts, policies, by=by, is_whole=False):
            assert change.notes
            assert not any(word in note for note in change.notes for word in ("of the port", "the port:", "whoever"))
