"""Resources as a node holds them: pinned, renewed, inert, in conflict, gone; and the status they get."""

import time

import pytest

from sidestep.kube.resources import DaemonEntry, NodeEntry, PodEntry, StatusFields, observe
from sidestep.model.intercept import Kind
from sidestep.node.cluster.resource_status import aggregate, differs, is_ours, reporting_node
from sidestep.node.sessions.resource import OVERRULED
from sidestep.node.sessions.resources import SessionResources
from sidestep.tunnel.proof import generate, public_text
from tests.unit.node.scenes import inventory, pod

KEY = public_text(generate())


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gone():
    return []


@pytest.fixture
def resources(clock, gone):
    return SessionResources(now=clock, on_gone=lambda resource: gone.append(resource.latest.display))


def value(name, *, renewed="1", created="2025-01-01T00:00:00Z", header="dev", **spec):
    wanted = {"headers": [{"name": "x-user", "value": header}]} if header else {}
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "creationTimestamp": created},
        "spec": {
            "workload": "deploy/orders",
            "port": "8443",
            "session": {"publicKey": KEY},
            "filter": wanted,
            "renewTime": renewed,
            **spec,
        },
    }


def verdict(resources, name, there=None):
    return resources.verdicts(inventory(pod()) if there is None else there)[f"uid-{name}"]


def test_what_lives_stands_and_covers_its_pods(resources):
    resources.apply(Kind.INTERCEPT, value("a"))
    found = verdict(resources, "a")
    assert found.standing
    assert [str(key) for key in found.pods] == ["shop/orders-1"]


def test_thirty_seconds_without_renewal_make_it_inert_and_ten_minutes_expired(resources, clock):
    resources.apply(Kind.INTERCEPT, value("a"))
    clock.now += 25
    resources.apply(Kind.INTERCEPT, value("a", renewed="2"))
    clock.now += 25
    assert verdict(resources, "a").standing
    resources.apply(Kind.INTERCEPT, value("a", renewed="2"))  # any other change is no renewal
    clock.now += 6
    found = verdict(resources, "a")
    assert found.stale
    assert not found.standing
    assert resources.expired() == ()
    clock.now += 570
    assert [resource.uid for resource in resources.expired()] == ["uid-a"]
    resources.apply(Kind.INTERCEPT, value("a", renewed="3"))
    assert verdict(resources, "a").standing
    assert resources.expired() == ()


def test_time_stands_still_while_renewals_cannot_be_seen(resources, clock):
    resources.connected(Kind.INTERCEPT, connected=True)
    resources.apply(Kind.INTERCEPT, value("a"))
    clock.now += 20
    resources.connected(Kind.INTERCEPT, connected=False)
    clock.now += 3600
    assert verdict(resources, "a").standing
    assert resources.expired() == ()
    resources.connected(Kind.INTERCEPT, connected=True)
    clock.now += 25
    assert verdict(resources, "a").standing, "after a break everybody has the full time again"
    clock.now += 6
    assert verdict(resources, "a").stale


def test_the_older_one_wins_and_what_is_inert_is_in_nobodys_way(resources, clock):
    resources.apply(Kind.INTERCEPT, value("young", created="2025-01-02T00:00:00Z", header=None))
    resources.apply(Kind.INTERCEPT, value("old", created="2025-01-01T00:00:00Z"))
    assert verdict(resources, "old").standing
    refused = verdict(resources, "young")
    assert not refused.standing
    assert "intercept shop/old" in refused.refusal
    clock.now += 25
    resources.apply(Kind.INTERCEPT, value("young", created="2025-01-02T00:00:00Z", header=None, renewed="2"))
    clock.now += 10
    assert verdict(resources, "old").stale
    assert verdict(resources, "young").standing


def test_spec_and_key_are_those_of_the_first_sight(resources):
    resources.apply(Kind.INTERCEPT, value("a"))
    assert verdict(resources, "a").standing
    resource = resources.find("uid-a")
    key = resource.key
    other = public_text(generate())
    resources.apply(Kind.INTERCEPT, value("a", header=None, session={"publicKey": other}, renewed="2"))
    assert resource.key == key
    assert not resource.intercept.filter.is_global
    assert resource.changed


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"session": {"publicKey": "AAAA"}}, "Ed25519"),
        ({"filter": {"headers": [{"name": "x", "match": "Regex", "value": "("}]}}, "("),
        ({"workload": "nothing-there"}, "no workload nothing-there"),
    ],
)
def test_what_cannot_be_served_says_why(resources, spec, told):
    resources.apply(Kind.INTERCEPT, value("a", **spec))
    found = verdict(resources, "a")
    assert not found.standing
    assert told in found.refusal


def test_a_list_forgets_what_is_gone_of_its_kind_only(resources, gone):
    resources.apply(Kind.INTERCEPT, value("a"))
    resources.apply(Kind.INTERCEPT, value("b"))
    resources.replace(Kind.WIRETAP, [])
    assert gone == []
    resources.replace(Kind.INTERCEPT, [value("b"), {"metadata": {}}])
    assert gone == ["shop/a"]
    resources.remove(Kind.INTERCEPT, value("b"))
    resources.remove(Kind.INTERCEPT, value("b"))
    assert gone == ["shop/a", "shop/b"]
    assert resources.all() == ()


# --- many, and in a hurry --------------------------------------------------------------------------------------------

REGEXES = [
    {"name": "x-user", "match": "Regex", "value": f"{number}([a-z0-9]{{1,20}}|[^é]+)*é" * 20} for number in range(32)
]


@pytest.mark.alone
def test_events_of_an_unchanged_or_changed_spec_compile_nothing(resources):
    """Whatever is patched, and however often: only what was seen first is ever looked at."""
    heavy = {"filter": {"headers": REGEXES}}
    resources.apply(Kind.INTERCEPT, value("a", **heavy))
    began = time.process_time()
    assert verdict(resources, "a").standing
    judging = time.process_time() - began
    began = time.process_time()
    for number in range(100):
        resources.apply(Kind.INTERCEPT, value("a", renewed=str(number), **heavy))
        resources.apply(Kind.INTERCEPT, value("a", renewed=str(number), workload=f"deploy/w{number}", **heavy))
        verdict(resources, "a")
    assert time.process_time() - began < 20 * judging
    assert resources.find("uid-a").changed


def test_renewals_are_no_news_and_everything_else_is(clock, gone):
    news = []
    resources = SessionResources(now=clock, on_change=news.append, on_gone=lambda resource: gone.append(resource.uid))
    resources.apply(Kind.INTERCEPT, value("a"))
    assert news == ["uid-a"]
    for number in range(20):
        resources.apply(Kind.INTERCEPT, value("a", renewed=f"r{number}"))
    resources.replace(Kind.INTERCEPT, [value("a", renewed="again")])
    assert news == ["uid-a"]
    clock.now += 31
    resources.apply(Kind.INTERCEPT, value("a", renewed="back"))
    assert news == ["uid-a"] * 2, "it was inert"
    resources.apply(Kind.INTERCEPT, value("a", renewed="back", port="1"))
    resources.apply(Kind.INTERCEPT, value("a", renewed="back", port="1") | {"status": {"state": "Active"}})
    resources.remove(Kind.INTERCEPT, value("a"))
    assert news == ["uid-a"] * 5


def test_an_answer_is_kept_until_something_changes(resources, clock):
    there = inventory(pod())
    for name in ("a", "b"):
        resources.apply(Kind.INTERCEPT, value(name, header=name))
    first = resources.verdicts(there)
    resources.apply(Kind.INTERCEPT, value("a", header="a", renewed="2"))
    assert resources.verdicts(there) is first
    clock.now += 31
    resources.apply(Kind.INTERCEPT, value("a", header="a", renewed="3"))
    second = resources.verdicts(there)
    assert second is not first
    assert second["uid-b"].stale
    assert resources.verdicts(inventory(pod())) is not second
    resources.remove(Kind.INTERCEPT, value("b"))
    assert set(resources.verdicts(there)) == {"uid-a"}


def test_renewals_of_a_resource_that_was_refused_unjudged_decide_nothing(resources):
    """A daemon that starts finds the digest of another spec in the status: the spec is never judged."""
    there, overruled = inventory(pod()), {"status": {"specDigest": "0" * 64}}
    resources.apply(Kind.INTERCEPT, value("a") | overruled)
    first = resources.verdicts(there)
    assert first["uid-a"].refusal == OVERRULED
    resources.apply(Kind.INTERCEPT, value("a", renewed="2") | overruled)
    assert resources.verdicts(there) is first


def test_another_spec_than_all_nodes_know_is_refused(resources, gone):
    accepted = value("a")
    digest = observe(Kind.INTERCEPT, accepted).digest
    resources.apply(Kind.INTERCEPT, accepted)
    assert verdict(resources, "a").standing
    assert not resources.find("uid-a").accepted
    resources.apply(Kind.INTERCEPT, accepted | {"status": {"specDigest": digest}})
    assert resources.find("uid-a").accepted
    assert verdict(resources, "a").standing
    resources.apply(Kind.INTERCEPT, accepted | {"status": {"specDigest": "0" * 64}})
    found = verdict(resources, "a")
    assert (found.standing, found.refusal) == (False, OVERRULED)
    assert resources.find("uid-a").key == b""
    assert gone == ["shop/a"], "its session ends"
    resources.apply(Kind.INTERCEPT, accepted | {"status": {"specDigest": digest}})
    assert not verdict(resources, "a").standing, "for good"


def test_only_so_many_live_in_a_namespace_and_for_an_owner(resources, clock, monkeypatch):
    monkeypatch.setattr("sidestep.node.sessions.resource.MAX_IN_NAMESPACE", 5)
    monkeypatch.setattr("sidestep.node.sessions.resource.MAX_OF_OWNER", 3)

    def put(name, owner, *, renewed="1", kind=Kind.INTERCEPT):
        created = f"2025-01-01T00:00:{int(name[1:]):02}Z"
        resources.apply(kind, value(name, owner=owner, header=name, created=created, renewed=renewed))

    for number in range(5):
        put(f"a{number}", "ada")
    for number in range(5, 9):
        put(f"b{number}", f"bob{number}", kind=Kind.WIRETAP)
    found = resources.verdicts(inventory(pod()))
    standing = {uid for uid, each in found.items() if each.standing}
    assert standing == {"uid-a0", "uid-a1", "uid-a2", "uid-b5", "uid-b6"}, "the oldest, of both kinds"
    assert "ada holds 3 living intercepts and wiretaps in namespace shop" in found["uid-a4"].refusal
    assert "namespace shop has 5 living intercepts and wiretaps" in found["uid-b8"].refusal
    resources.remove(Kind.INTERCEPT, value("a0"))
    assert verdict(resources, "a3").standing, "one that ends makes room"
    clock.now += 31
    put("b8", "bob8", renewed="2", kind=Kind.WIRETAP)
    assert verdict(resources, "b8").standing, "what is inert takes no room"


def test_one_namespaces_flood_does_not_keep_another_waiting(gone):
    """Looking at a spec may take 50 ms; a round does a little, and every namespace has its turn."""

    class Slow(Clock):
        def __call__(self):
            self.now += 0.011  # a look at the clock for each resource judged
            return self.now

    resources = SessionResources(now=Slow(), inert_after=1e9)
    for number in range(40):
        flood = value(f"f{number:02}", header=f"h{number}", created="2025-01-01T00:00:00Z")
        flood["metadata"]["namespace"] = "flood"
        resources.apply(Kind.INTERCEPT, flood)
    resources.apply(Kind.INTERCEPT, value("a", created="2025-01-02T00:00:00Z"))
    rounds = 0
    while verdict(resources, "a").waiting:
        assert resources.waiting
        rounds += 1
        assert rounds < 5
    assert verdict(resources, "a").standing
    while resources.waiting:
        verdict(resources, "a")
        rounds += 1
        assert rounds < 60
    assert all(resource.validated for resource in resources.all())


# --- the status -----------------------------------------------------------------------------------------------------

OWN = DaemonEntry("sidestep", "new", 7443, "2025-01-01T00:00:02.000000Z")


def entry(*pods, refusal="", daemon=OWN):
    return NodeEntry(daemon=daemon, certificate="x", pods=tuple(pods), refusal=refusal)


def whole(resources, nodes, *, found=None, before=None):
    resource = resources.find("uid-a")
    return aggregate(
        resource, found or verdict(resources, "a"), nodes, before=before or StatusFields(), now="2025-01-01T00:00:00Z"
    )


def test_the_words_of_a_status(resources, clock):
    resources.apply(Kind.INTERCEPT, value("a"))
    assert whole(resources, {})["state"] == "Pending"
    assert "no pod" in whole(resources, {})["message"]
    waiting = {"n1": entry(PodEntry("p", "pending", "nothing listens on port 8443"))}
    assert whole(resources, waiting)["message"] == "nothing listens on port 8443"
    active = {"n1": entry(PodEntry("p", "active"), PodEntry("q", "pending")), "n2": entry(PodEntry("r", "attached"))}
    found = whole(resources, active)
    assert (found["state"], found["activePods"], found["filter"]) == ("Active", 2, "header x-user=dev")
    refused = {"n1": entry(refusal="no certificate"), "n2": entry(PodEntry("r", "active"))}
    assert whole(resources, refused)["state"] == "Active"
    refused["n2"] = entry(refusal="no certificate")
    found = whole(resources, refused)
    assert (found["state"], found["message"]) == ("Refused", "no certificate")
    assert {each["type"]: each["status"] for each in found["conditions"]} == {"Accepted": "False", "Active": "False"}
    clock.now += 31
    assert whole(resources, active)["state"] == "Stale"


def test_a_condition_keeps_its_time_until_it_changes(resources):
    resources.apply(Kind.INTERCEPT, value("a"))
    first = whole(resources, {})
    status = StatusFields(
        state=first["state"],
        message=first["message"],
        filter=first["filter"],
        conditions=tuple(_condition(each) for each in first["conditions"]),
    )
    resource = resources.find("uid-a")
    again = aggregate(resource, verdict(resources, "a"), {}, before=status, now="2025-06-01T00:00:00Z")
    assert not differs(again, status)
    active = {"n1": entry(PodEntry("p", "active"))}
    changed = aggregate(resource, verdict(resources, "a"), active, before=status, now="2025-06-01T00:00:00Z")
    times = {each["type"]: each["lastTransitionTime"] for each in changed["conditions"]}
    assert times == {"Accepted": "2025-01-01T00:00:00Z", "Active": "2025-06-01T00:00:00Z"}


def _condition(value):
    from sidestep.kube.resources import StatusCondition

    return StatusCondition(
        value["type"], value["status"], value["reason"], value["message"], value["lastTransitionTime"]
    )


def test_who_writes_the_entry_of_a_node():
    older = DaemonEntry("sidestep", "old", 7443, "2025-01-01T00:00:01.000000Z")
    assert is_ours(None, OWN)
    assert is_ours(entry(), OWN)
    assert is_ours(entry(daemon=older), OWN)
    assert not is_ours(entry(), older)
    assert not is_ours(entry(), DaemonEntry("sidestep", "a", 7443, OWN.started)), "one of two that began together"


def test_who_speaks_for_all():
    assert reporting_node({}) == ""
    assert reporting_node({"n2": entry(), "n1": None}) == "n2"
    assert reporting_node({"n2": entry(), "n1": entry()}) == "n1"
