from structlog.testing import capture_logs

from sidestep.model.condition import Condition, ConditionType
from sidestep.model.pod import PodKey
from sidestep.node.conditions import LOGGED_BURST, MAX_PER_SOURCE, MAX_TEXT, Conditions, Source

POD = PodKey("shop", "orders-1")
OTHER = PodKey("shop", "orders-2")
NO_APP = Condition(ConditionType.NO_APP, "pod shop/orders-1 port 8443", "nothing listens")
BAD = Condition(ConditionType.CERTIFICATE_INVALID, "pod shop/orders-1 port 8443", "expired")


def test_a_source_replaces_what_it_stated_and_nothing_else():
    store = Conditions()
    store.state(Source("plan", POD), [BAD])
    store.state(Source("proxy", POD, 8443), [NO_APP])
    assert store.all() == (BAD, NO_APP)
    store.state(Source("plan", POD), [])
    assert store.all() == (NO_APP,)


def test_the_union_is_sorted_and_without_repetition():
    store = Conditions()
    store.state(Source("a", POD), [NO_APP, NO_APP])
    store.state(Source("b", POD), [NO_APP, BAD])
    assert store.all() == store.of(POD) == (BAD, NO_APP)


def test_a_pod_that_leaves_takes_its_conditions_with_it():
    store = Conditions()
    store.state(Source("plan", POD), [BAD])
    store.state(Source("proxy", POD, 8443), [NO_APP])
    store.state(Source("plan", OTHER), [NO_APP])
    store.forget(POD, check="proxy")
    assert store.of(POD) == (BAD,)
    store.forget(POD)
    assert store.of(POD) == ()
    assert store.of(OTHER) == (NO_APP,)


def test_a_change_is_told_once():
    told = []
    store = Conditions(on_change=lambda: told.append(True))
    store.state(Source("plan", POD), [BAD])
    store.state(Source("plan", POD), [BAD])
    store.state(Source("other", POD), [])
    assert len(told) == 1
    store.state(Source("plan", POD), [])
    assert len(told) == 2


def test_hostile_texts_are_one_bounded_line_and_few():
    store = Conditions()
    flood = [Condition(ConditionType.NO_APP, "pod a", f"{number}\n\nline\r" + "x" * 5000) for number in range(1000)]
    store.state(Source("proxy", POD, 1), flood)
    held = store.all()
    assert len(held) == MAX_PER_SOURCE
    assert all("\n" not in condition.text and len(condition.text) <= MAX_TEXT + 1 for condition in held)


def test_names_that_are_no_utf_8_can_be_shown():
    store = Conditions()
    store.state(Source("manifests"), [Condition(ConditionType.NO_APP, "manifest \udcff.yaml", "\udcff.yaml: bad")])
    (held,) = store.all()
    assert (held.subject, held.text) == ("manifest \\udcff.yaml", "\\udcff.yaml: bad")
    held.text.encode()


def test_what_comes_and_goes_all_the_time_is_logged_now_and_then():
    clock = [0.0]
    with capture_logs() as logged:
        store = Conditions(now=lambda: clock[0])
        for number in range(10_000):
            text = Condition(ConditionType.UPSTREAM_UNVERIFIED, "pod shop/orders-1 port 8443", f"{number}")
            store.state(Source("proxy", POD, 8443), [text])
        assert len(logged) == LOGGED_BURST
        store.state(Source("proxy", OTHER, 8443), [NO_APP])
        assert logged[-1]["text"] == NO_APP.text
        assert logged[-1]["unlogged"] > 10_000
        clock[0] += 1.0
        store.state(Source("proxy", POD, 8443), [])
        assert logged[-1]["event"] == "condition cleared"
