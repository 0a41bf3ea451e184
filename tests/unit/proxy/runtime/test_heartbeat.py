"""What heartbeats say, and when."""

from collections import Counter

from sidestep.proxy.control.messages import MAX_PORTS
from sidestep.proxy.runtime.heartbeat import Heartbeat


class Link:
    """Takes so many heartbeats."""

    def __init__(self, room=1 << 30):
        self.room = room
        self.sent = []

    def next_seq(self):
        return len(self.sent) + 1

    def send(self, message, *, droppable):
        assert droppable
        if len(self.sent) >= self.room:
            return False
        self.sent.append(message)
        return True


def test_what_has_not_changed_is_not_told_again():
    link = Link()
    heartbeat = Heartbeat(link)
    counters = Counter(accepted=1)
    for _ in range(3):
        heartbeat.beat(1, {80: counters}, {})
    counters["accepted"] += 1
    heartbeat.beat(1, {80: counters}, Counter())
    assert [message.ports for message in link.sent] == [{80: {"accepted": 1}}, {80: {"accepted": 2}}]
    heartbeat.beat(2, {80: counters}, Counter())
    heartbeat.beat(2, {80: counters}, Counter(odd=1))
    assert [(message.connections, message.anomalies) for message in link.sent[2:]] == [(2, {}), (2, {"odd": 1})]


def test_a_proxy_without_ports_tells_so():
    link = Link()
    Heartbeat(link).beat(0, {}, {})
    assert [(message.connections, message.ports) for message in link.sent] == [(0, {})]


def test_many_ports_are_told_in_parts_and_again_if_a_part_was_not_sent():
    link = Link(room=2)
    heartbeat = Heartbeat(link)
    ports = {number: Counter(accepted=number) for number in range(1, 2 * MAX_PORTS + 2)}
    heartbeat.beat(0, ports, {})
    assert [len(message.ports) for message in link.sent] == [MAX_PORTS, MAX_PORTS]
    link.room, link.sent = 100, []
    heartbeat.beat(0, ports, {})
    heartbeat.beat(0, ports, {})
    assert [len(message.ports) for message in link.sent] == [MAX_PORTS, MAX_PORTS, 1]
    assert {number: counters for message in link.sent for number, counters in message.ports.items()} == ports
