"""A connection, as what mirrors it sees it: what is asked of the conductor, and when."""

from types import SimpleNamespace

import pytest

from sidestep.proxy.connection.endpoints import ConnectionInfo, Endpoints
from sidestep.proxy.connection.mirrored import MirroredConnection

ENDPOINTS = Endpoints("192.0.2.1", 9, "192.0.2.2", 80)


class Conductor:
    """Notes what it is asked."""

    def __init__(self, *, notes=(), joined=None, is_apart=False):
        self.relay = SimpleNamespace(mirror=SimpleNamespace(notes=list(notes)), wired=joined)
        self.is_apart = is_apart
        self.protocol = "http/1.1"
        self.told = []
        self.host = SimpleNamespace(
            log_requests=lambda connection: self.told.append("log"),
            open_stream=lambda info, leg, done: self.told.append(info) or "cancel",
        )

    def info(self, protocol):
        return ConnectionInfo(ENDPOINTS, tls=True, server_name="shop", protocol=protocol)

    def apply_again(self):
        self.told.append("apply")


@pytest.mark.parametrize(
    ("notes", "joined", "is_apart", "told"),
    [
        ((), None, False, []),
        ((), ("client", "app"), False, ["apply"]),
        (("note",), None, False, ["apply"]),
        (("note",), ("client", "app"), True, ["log"]),
        ((), ("client", "app"), True, []),
    ],
)
def test_after_a_copy_has_moved_only_what_is_needed_is_done(notes, joined, is_apart, told):
    conductor = Conductor(notes=notes, joined=joined, is_apart=is_apart)
    MirroredConnection(conductor).sink_told()
    assert conductor.told == told


def test_after_events_were_consumed_everything_is_applied():
    conductor = Conductor()
    mirrored = MirroredConnection(conductor)
    mirrored.mirrored()
    assert conductor.told == ["apply"]
    assert mirrored.relay is conductor.relay


@pytest.mark.parametrize(("protocol", "spoken"), [(None, "http/1.1"), ("h2", "h2")])
def test_the_handler_of_a_copy_is_asked_for_in_its_own_protocol(protocol, spoken):
    conductor = Conductor()
    assert MirroredConnection(conductor).ask_for_copy(SimpleNamespace(protocol=protocol), None) == "cancel"
    assert conductor.told == [ConnectionInfo(ENDPOINTS, tls=True, server_name="shop", protocol=spoken)]
