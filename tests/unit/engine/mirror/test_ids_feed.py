"""One connection as its IDS gets it: every byte of both sides in order, or a reset that is counted."""

from collections import Counter

import pytest

from sidestep.engine.mirror.ids_feed import SEGMENT, IdsFeed, feed_ids
from sidestep.engine.mirror.producer import Mirror
from sidestep.protocols.tcp_synthesis import Endpoint

CLIENT, SERVER = Endpoint("10.0.0.1", 40000), Endpoint("10.0.0.2", 8443)
FIN, SYN, RST = 1, 2, 4


class Pipe:
    def __init__(self, room=1 << 30):
        self.room, self.packets, self.feeds = room, [], set()

    def write(self, head, data=b"", *, ends=False):
        packet = head + bytes(data)
        if len(packet) > self.room and not ends:
            return False
        self.room -= len(packet)
        self.packets.append(packet)
        return True

    def enter(self, feed):
        self.feeds.add(feed)

    def leave(self, feed):
        self.feeds.discard(feed)

    def flags(self):
        return [packet[33] for packet in self.packets]

    def said(self, port):
        return b"".join(
            packet[40:] for packet in self.packets if packet[20:22] == port.to_bytes(2) and not packet[33] & SYN
        )


class Fed:
    """A connection that is fed; `say` and `answer` are the client's words and the server's."""

    def __init__(self, room=1 << 30):
        self.pipe, self.counts = Pipe(room), Counter()
        self.feed = IdsFeed(self.pipe, CLIENT, SERVER, self.counts)

    def say(self, data):
        self.feed.said(data, from_client=True)

    def answer(self, data):
        self.feed.said(data, from_client=False)


def test_both_sides_are_said_in_order():
    fed = Fed()
    long = bytes(range(256)) * (SEGMENT // 100)
    fed.say(b"GET")
    fed.answer(b"200")
    fed.say(long)
    assert fed.pipe.said(40000) == b"GET" + long
    assert fed.pipe.said(8443) == b"200"
    assert max(map(len, fed.pipe.packets)) == SEGMENT + 40
    assert fed.counts == {"ids_fed": 1}
    assert fed.pipe.feeds == {fed.feed}


def test_an_orderly_end():
    fed = Fed()
    fed.say(b"a")
    fed.feed.finished(from_client=True)
    fed.say(b"never")
    fed.answer(b"b")
    fed.feed.finished(from_client=False)
    fed.feed.finished(from_client=False)
    fed.feed.over()
    assert [flags & FIN for flags in fed.pipe.flags()].count(1) == 2
    assert not any(flags & RST for flags in fed.pipe.flags())
    assert (fed.pipe.said(40000), fed.pipe.said(8443)) == (b"a", b"b")
    assert not fed.pipe.feeds
    assert fed.counts == {"ids_fed": 1}


def test_an_end_that_is_none_is_a_reset():
    fed = Fed()
    fed.say(b"a")
    fed.feed.over()
    fed.say(b"never")
    fed.feed.finished(from_client=False)
    fed.feed.over()
    assert [flags & RST for flags in fed.pipe.flags()] == [0, 0, 0, 0, RST]
    assert fed.pipe.said(40000) == b"a"
    assert not fed.pipe.feeds
    assert fed.counts == {"ids_fed": 1}


@pytest.mark.parametrize("size", [1000, 10 * SEGMENT])
def test_what_finds_no_room_ends_the_feed_and_is_counted(size):
    fed = Fed(room=500 if size == 1000 else 2 * SEGMENT)
    fed.say(b"a" * 100)
    fed.say(b"b" * size)
    fed.say(b"c")
    assert fed.pipe.said(40000) == b"a" * 100 + b"b" * (0 if size == 1000 else SEGMENT)
    assert fed.pipe.flags()[-1] & RST
    assert fed.counts == {"ids_fed": 1, "ids_cut": 1}
    assert not fed.feed.is_open
    assert not fed.pipe.feeds


def test_a_connection_that_finds_no_room_at_all_is_not_fed():
    pipe, counts = Pipe(room=10), Counter()
    assert feed_ids(pipe, CLIENT, SERVER, counts) is None
    assert (pipe.packets, pipe.feeds) == ([], set())
    assert counts == {"ids_unfed": 1}


def test_it_is_told_by_a_mirror():
    mirror, pipe, counts = Mirror(), Pipe(), Counter()
    mirror.observer = feed_ids(pipe, CLIENT, SERVER, counts)
    assert mirror.is_listening
    assert mirror.hears_server
    mirror.client_data(b"ask")
    mirror.server_data(b"answer")
    mirror.client_end()
    mirror.server_end()
    mirror.end()
    assert (pipe.said(40000), pipe.said(8443)) == (b"ask", b"answer")
    assert [flags & (FIN | RST) for flags in pipe.flags()].count(FIN) == 2
    assert not mirror.is_listening
    assert not mirror.events


@pytest.mark.parametrize("ends", [Mirror.client_lost, Mirror.end])
def test_a_mirror_tells_it_of_a_break(ends):
    mirror, pipe = Mirror(), Pipe()
    mirror.observer = feed_ids(pipe, CLIENT, SERVER, Counter())
    mirror.client_data(b"ask")
    ends(mirror)
    mirror.end()
    assert [flags & RST for flags in pipe.flags()] == [0, 0, 0, 0, RST]
    assert not mirror.is_listening
