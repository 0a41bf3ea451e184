"""How often, and in which words, a cluster is told of alerts."""

from sidestep.model.pod import PodKey
from sidestep.node.records import alert_notes
from sidestep.node.records.alert_notes import AGAIN, AlertNotes
from sidestep.protocols.eve_records import RecordedAction

POD = PodKey("shop", "orders-1")
BLOCK = RecordedAction.BLOCK


def told(notes, now):
    """What is due, all told."""
    return [(key.pod, notes.tell(key, now)) for key in notes.due(now)]


def test_the_first_is_told_at_once_and_the_next_ones_together_later():
    notes = AlertNotes()
    notes.note(POD, "shop/p", "no-admin", BLOCK)
    assert told(notes, 0.0) == [(POD, "policy shop/p, rule no-admin blocked a request")]
    for _ in range(5):
        notes.note(POD, "shop/p", "no-admin", BLOCK)
    assert told(notes, AGAIN - 1) == []
    assert told(notes, AGAIN) == [(POD, "policy shop/p, rule no-admin blocked 5 requests")]
    assert told(notes, 10 * AGAIN) == []


def test_pods_rules_and_outcomes_are_told_apart():
    notes = AlertNotes()
    notes.note(POD, "shop/p", "r", RecordedAction.ALERT)
    notes.note(POD, "shop/p", "r", RecordedAction.WOULD_BLOCK)
    notes.note(POD, "shop/p", "other", BLOCK)
    notes.note(PodKey("shop", "orders-2"), "shop/p", "r", RecordedAction.ALERT)
    assert [text.partition("rule ")[2] for _, text in told(notes, 0.0)] == [
        "r applied to a request", "r would have blocked a request", "other blocked a request", "r applied to a request",
    ]  # fmt: skip


def test_what_is_not_told_waits_and_what_is_too_much_is_left_out(monkeypatch):
    monkeypatch.setattr(alert_notes, "MOST", 3)
    notes = AlertNotes()
    for number in range(5):
        notes.note(POD, "shop/p", f"r{number}", BLOCK)
    for key in notes.due(0.0)[:2]:
        notes.tell(key, 0.0)
    notes.note(POD, "shop/p", "r5", BLOCK)
    assert [text for _, text in told(notes, 0.0)] == [
        "policy shop/p, rule r2 blocked a request", "policy shop/p, rule r5 blocked a request",
    ]  # fmt: skip
    assert told(notes, 0.0) == []


def test_what_was_due_may_have_made_room_until_it_is_told(monkeypatch):
    monkeypatch.setattr(alert_notes, "MOST", 4)
    notes = AlertNotes()
    for number in range(4):
        notes.note(PodKey("aaa", "a"), "aaa/p", f"r{number}", BLOCK)
    due = notes.due(0.0)
    for name in ("b", "c", "d"):
        notes.note(PodKey(name, name), f"{name}/p", "r", BLOCK)
    assert [notes.tell(key, 0.0) for key in due] == ["policy aaa/p, rule r0 blocked a request", "", "", ""]
    assert [notes.tell(key, 0.0) for key in due] == [""] * 4
    assert [key.pod.namespace for key in notes.due(0.0)] == ["b", "c", "d"]
    for number in range(9):
        notes.note(PodKey("aaa", "a"), "aaa/p", f"again{number}", BLOCK)
    assert len(notes.due(0.0)) == 4


def test_a_namespace_that_has_much_gives_way_to_another(monkeypatch):
    monkeypatch.setattr(alert_notes, "MOST", 4)
    notes = AlertNotes()
    for number in range(9):
        notes.note(PodKey("aaa", "a"), "aaa/p", f"r{number}", BLOCK)
    for number in range(9):
        notes.note(PodKey("zzz", "z"), "zzz/p", f"r{number}", BLOCK)
    assert [(key.pod.namespace, key.rule) for key in notes.due(0.0)] == [
        ("aaa", "r0"), ("aaa", "r1"), ("zzz", "r0"), ("zzz", "r1"),
    ]  # fmt: skip


def test_namespaces_for_which_there_is_no_room_leave_nothing(monkeypatch):
    monkeypatch.setattr(alert_notes, "MOST", 4)
    notes = AlertNotes()
    for number in range(1000):
        notes.note(PodKey(f"n{number}", "a"), f"n{number}/p", "r", BLOCK)
    assert [key.pod.namespace for key in notes.due(0.0)] == ["n0", "n1", "n2", "n3"]
    assert len(notes._counts) == 4
