"""Resources as a node holds them: pinned, renewed, inert, in conflict, gone; and the status they get."""

import time

import pytest

from sidestep.kube.resources import DaemonEntry, NodeEntry, PodEntry, StatusFields, sight
from sidestep.model.intercept import Kind
from sidestep.node.cluster.resource_status import differs, mine, overall, speaker
from sidestep.node.sessions.resource import OVERRULED
from sidestep.node.sessions.resources import Registry
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
def registry(clock, gone):
    return Registry(now=clock, on_gone=lambda held: gone.append(held.latest.display))


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


def verdict(registry, name, there=None):
    return registry.verdicts(inventory(pod()) if there is None else there)[f"uid-{name}"]


def test_what_lives_stands_and_covers_its_pods(registry):
    registry.apply(Kind.INTERCEPT, value("a"))
    found = verdict(registry, "a")
    assert found.standing
    assert [str(key) for key in found.pods] == ["shop/orders-1"]


def test_thirty_seconds_without_renewal_make_it_inert_and_ten_minutes_expired(registry, clock):
    registry.apply(Kind.INTERCEPT, value("a"))
    clock.now += 25
    registry.apply(Kind.INTERCEPT, value("a", renewed="2"))
    clock.now += 25
    assert verdict(registry, "a").standing
    registry.apply(Kind.INTERCEPT, value("a", renewed="2"))  # any other change is no renewal
    clock.now += 6
    found = verdict(registry, "a")
    assert found.stale
    assert not found.standing
    assert registry.expired() == ()
    clock.now += 570
    assert [held.uid for held in registry.expired()] == ["uid-a"]
    registry.apply(Kind.INTERCEPT, value("a", renewed="3"))
    assert verdict(registry, "a").standing
    assert registry.expired() == ()


def test_time_stands_still_while_renewals_cannot_be_seen(registry, clock):
    registry.connected(Kind.INTERCEPT, connected=True)
    registry.apply(Kind.INTERCEPT, value("a"))
    clock.now += 20
    registry.connected(Kind.INTERCEPT, connected=False)
    clock.now += 3600
    assert verdict(registry, "a").standing
    assert registry.expired() == ()
    registry.connected(Kind.INTERCEPT, connected=True)
    clock.now += 25
    assert verdict(registry, "a").standing, "after a break everybody has the full time again"
    clock.now += 6
    assert verdict(registry, "a").stale


def test_the_older_one_wins_and_what_is_inert_is_in_nobodys_way(registry, clock):
    registry.apply(Kind.INTERCEPT, value("young", created="2025-01-02T00:00:00Z", header=None))
    registry.apply(Kind.INTERCEPT, value("old", created="2025-01-01T00:00:00Z"))
    assert verdict(registry, "old").standing
    refused = verdict(registry, "young")
    assert not refused.standing
    assert "intercept shop/old" in refused.refusal
    clock.now += 25
    registry.apply(Kind.INTERCEPT, value("young", created="2025-01-02T00:00:00Z", header=None, renewed="2"))
    clock.now += 10
    assert verdict(registry, "old").stale
    assert verdict(registry, "young").standing


def test_spec_and_key_are_those_of_the_first_sight(registry):
    registry.apply(Kind.INTERCEPT, value("a"))
    assert verdict(registry, "a").standing
    held = registry.find("uid-a")
    key = held.key
    other = public_text(generate())
    registry.apply(Kind.INTERCEPT, value("a", header=None, session={"publicKey": other}, renewed="2"))
    assert held.key == key
    assert not held.intercept.filter.is_global
    assert held.changed


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"session": {"publicKey": "AAAA"}}, "Ed25519"),
        ({"filter": {"headers": [{"name": "x", "match": "Regex", "value": "("}]}}, "("),
        ({"workload": "nothing-there"}, "no workload nothing-there"),
    ],
)
def test_what_cannot_be_served_says_why(registry, spec, told):
    registry.apply(Kind.INTERCEPT, value("a", **spec))
    found = verdict(registry, "a")
    assert not found.standing
    assert told in found.refusal


def test_a_list_forgets_what_is_gone_of_its_kind_only(registry, gone):
    registry.apply(Kind.INTERCEPT, value("a"))
    registry.apply(Kind.INTERCEPT, value("b"))
    registry.replace(Kind.WIRETAP, [])
    assert gone == []
    registry.replace(Kind.INTERCEPT, [value("b"), {"metadata": {}}])
    assert gone == ["shop/a"]
    registry.remove(Kind.INTERCEPT, value("b"))
    registry.remove(Kind.INTERCEPT, value("b"))
    assert gone == ["shop/a", "shop/b"]
    assert registry.all() == ()


# --- many, and in a hurry --------------------------------------------------------------------------------------------

REGEXES = [
    {"name": "x-user", "match": "Regex", "value": f"{number}([a-z0-9]{{1,20}}|[^é]+)*é" * 20} for number in range(32)
]


def test_events_of_an_unchanged_or_changed_spec_compile_nothing(registry):
    """Whatever is patched, and however often: only what was seen first is ever looked at."""
    heavy = {"filter": {"headers": REGEXES}}
    registry.apply(Kind.INTERCEPT, value("a", **heavy))
    began = time.process_time()
    assert verdict(registry, "a").standing
    judging = time.process_time() - began
    began = time.process_time()
    for number in range(100):
        registry.apply(Kind.INTERCEPT, value("a", renewed=str(number), **heavy))
        registry.apply(Kind.INTERCEPT, value("a", renewed=str(number), workload=f"deploy/w{number}", **heavy))
        verdict(registry, "a")
    assert time.process_time() - began < 20 * judging
    assert registry.find("uid-a").changed


def test_renewals_are_no_news_and_everything_else_is(clock, gone):
    news = []
    registry = Registry(now=clock, on_change=news.append, on_gone=lambda held: gone.append(held.uid))
    registry.apply(Kind.INTERCEPT, value("a"))
    assert news == ["uid-a"]
    for number in range(20):
        registry.apply(Kind.INTERCEPT, value("a", renewed=f"r{number}"))
    registry.replace(Kind.INTERCEPT, [value("a", renewed="again")])
    assert news == ["uid-a"]
    clock.now += 31
    registry.apply(Kind.INTERCEPT, value("a", renewed="back"))
    assert news == ["uid-a"] * 2, "it was inert"
    registry.apply(Kind.INTERCEPT, value("a", renewed="back", port="1"))
    registry.apply(Kind.INTERCEPT, value("a", renewed="back", port="1") | {"status": {"state": "Active"}})
    registry.remove(Kind.INTERCEPT, value("a"))
    assert news == ["uid-a"] * 5


def test_an_answer_is_kept_until_something_changes(registry, clock):
    there = inventory(pod())
    for name in ("a", "b"):
        registry.apply(Kind.INTERCEPT, value(name, header=name))
    first = registry.verdicts(there)
    registry.apply(Kind.INTERCEPT, value("a", header="a", renewed="2"))
    assert registry.verdicts(there) is first
    clock.now += 31
    registry.apply(Kind.INTERCEPT, value("a", header="a", renewed="3"))
    second = registry.verdicts(there)
    assert second is not first
    assert second["uid-b"].stale
    assert registry.verdicts(inventory(pod())) is not second
    registry.remove(Kind.INTERCEPT, value("b"))
    assert set(registry.verdicts(there)) == {"uid-a"}


def test_renewals_of_a_resource_that_was_refused_unjudged_decide_nothing(registry):
    """A daemon that starts finds the digest of another spec in the status: the spec is never judged."""
    there, overruled = inventory(pod()), {"status": {"specDigest": "0" * 64}}
    registry.apply(Kind.INTERCEPT, value("a") | overruled)
    first = registry.verdicts(there)
    assert first["uid-a"].refusal == OVERRULED
    registry.apply(Kind.INTERCEPT, value("a", renewed="2") | overruled)
    assert registry.verdicts(there) is first


def test_another_spec_than_all_nodes_know_is_refused(registry, gone):
    accepted = value("a")
    digest = sight(Kind.INTERCEPT, accepted).digest
    registry.apply(Kind.INTERCEPT, accepted)
    assert verdict(registry, "a").standing
    assert not registry.find("uid-a").accepted
    registry.apply(Kind.INTERCEPT, accepted | {"status": {"specDigest": digest}})
    assert registry.find("uid-a").accepted
    assert verdict(registry, "a").standing
    registry.apply(Kind.INTERCEPT, accepted | {"status": {"specDigest": "0" * 64}})
    found = verdict(registry, "a")
    assert (found.standing, found.refusal) == (False, OVERRULED)
    assert registry.find("uid-a").key == b""
    assert gone == ["shop/a"], "its session ends"
    registry.apply(Kind.INTERCEPT, accepted | {"status": {"specDigest": digest}})
    assert not verdict(registry, "a").standing, "for good"


def test_only_so_many_live_in_a_namespace_and_for_an_owner(registry, clock, monkeypatch):
    monkeypatch.setattr("sidestep.node.sessions.resource.MAX_IN_NAMESPACE", 5)
    monkeypatch.setattr("sidestep.node.sessions.resource.MAX_OF_OWNER", 3)

    def put(name, owner, *, renewed="1", kind=Kind.INTERCEPT):
        created = f"2025-01-01T00:00:{int(name[1:]):02}Z"
        registry.apply(kind, value(name, owner=owner, header=name, created=created, renewed=renewed))

    for number in range(5):
        put(f"a{number}", "ada")
    for number in range(5, 9):
        put(f"b{number}", f"bob{number}", kind=Kind.WIRETAP)
    found = registry.verdicts(inventory(pod()))
    standing = {uid for uid, each in found.items() if each.standing}
    assert standing == {"uid-a0", "uid-a1", "uid-a2", "uid-b5", "uid-b6"}, "the oldest, of both kinds"
    assert "ada holds 3 living intercepts and wiretaps in namespace shop" in found["uid-a4"].refusal
    assert "namespace shop has 5 living intercepts and wiretaps" in found["uid-b8"].refusal
    registry.remove(Kind.INTERCEPT, value("a0"))
    assert verdict(registry, "a3").standing, "one that ends makes room"
    clock.now += 31
    put("b8", "bob8", renewed="2", kind=Kind.WIRETAP)
    assert verdict(registry, "b8").standing, "what is inert takes no room"


def test_one_namespaces_flood_does_not_keep_another_waiting(gone):
    """Looking at a spec may take 50 ms; a round does a little, and every namespace has its turn."""

    class Slow(Clock):
        def __call__(self):
            self.now += 0.011  # a look at the clock for each resource judged
            return self.now

    registry = Registry(now=Slow(), inert_after=1e9)
    for number in range(40):
        flood = value(f"f{number:02}", header=f"h{number}", created="2025-01-01T00:00:00Z")
        flood["metadata"]["namespace"] = "flood"
        registry.apply(Kind.INTERCEPT, flood)
    registry.apply(Kind.INTERCEPT, value("a", created="2025-01-02T00:00:00Z"))
    rounds = 0
    while verdict(registry, "a").waiting:
        assert registry.waiting
        rounds += 1
        assert rounds < 5
    assert verdict(registry, "a").standing
    while registry.waiting:
        verdict(registry, "a")
        rounds += 1
        assert rounds < 60
    assert all(held.judged for held in registry.all())


# --- the status -----------------------------------------------------------------------------------------------------

OWN = DaemonEntry("sidestep", "new", 7443, "2025-01-01T00:00:02.000000Z")


def entry(*pods, refusal="", daemon=OWN):
    return NodeEntry(daemon=daemon, certificate="x", pods=tuple(pods), refusal=refusal)


def whole(registry, nodes, *, found=None, before=None):
    held = registry.find("uid-a")
    return overall(
        held, found or verdict(registry, "a"), nodes, before=before or StatusFields(), now="2025-01-01T00:00:00Z"
    )


def test_the_words_of_a_status(registry, clock):
    registry.apply(Kind.INTERCEPT, value("a"))
    assert whole(registry, {})["state"] == "Pending"
    assert "no pod" in whole(registry, {})["message"]
    waiting = {"n1": entry(PodEntry("p", "pending", "nothing listens on port 8443"))}
    assert whole(registry, waiting)["message"] == "nothing listens on port 8443"
    active = {"n1": entry(PodEntry("p", "active"), PodEntry("q", "pending")), "n2": entry(PodEntry("r", "attached"))}
    found = whole(registry, active)
    assert (found["state"], found["activePods"], found["filter"]) == ("Active", 2, "header x-user=dev")
    refused = {"n1": entry(refusal="no certificate"), "n2": entry(PodEntry("r", "active"))}
    assert whole(registry, refused)["state"] == "Active"
    refused["n2"] = entry(refusal="no certificate")
    found = whole(registry, refused)
    assert (found["state"], found["message"]) == ("Refused", "no certificate")
    assert {each["type"]: each["status"] for each in found["conditions"]} == {"Accepted": "False", "Active": "False"}
    clock.now += 31
    assert whole(registry, active)["state"] == "Stale"


def test_a_condition_keeps_its_time_until_it_changes(registry):
    registry.apply(Kind.INTERCEPT, value("a"))
    first = whole(registry, {})
    status = StatusFields(
        state=first["state"],
        message=first["message"],
        filter=first["filter"],
        conditions=tuple(_condition(each) for each in first["conditions"]),
    )
    held = registry.find("uid-a")
    again = overall(held, verdict(registry, "a"), {}, before=status, now="2025-06-01T00:00:00Z")
    assert not differs(again, status)
    active = {"n1": entry(PodEntry("p", "active"))}
    changed = overall(held, verdict(registry, "a"), active, before=status, now="2025-06-01T00:00:00Z")
    times = {each["type"]: each["lastTransitionTime"] for each in changed["conditions"]}
    assert times == {"Accepted": "2025-01-01T00:00:00Z", "Active": "2025-06-01T00:00:00Z"}


def _condition(value):
    from sidestep.kube.resources import StatusCondition

    return StatusCondition(
        value["type"], value["status"], value["reason"], value["message"], value["lastTransitionTime"]
    )


def test_who_writes_the_entry_of_a_node():
    older = DaemonEntry("sidestep", "old", 7443, "2025-01-01T00:00:01.000000Z")
    assert mine(None, OWN)
    assert mine(entry(), OWN)
    assert mine(entry(daemon=older), OWN)
    assert not mine(entry(), older)
    assert not mine(entry(), DaemonEntry("sidestep", "a", 7443, OWN.started)), "one of two that began together"


def test_who_speaks_for_all():
    assert speaker({}) == ""
    assert speaker({"n2": entry(), "n1": None}) == "n2"
    assert speaker({"n2": entry(), "n1": entry()}) == "n1"
