"""The connections of a proxy: which are counted, which are ended."""

import pytest

from sidestep.proxy.runtime.live_connections import LiveConnections


class Setup:
    """A connection that is being set up."""

    def __init__(self):
        self.abandoned = 0

    def abandon(self):
        self.abandoned += 1


class Relay:
    """What tells whether a connection may be ended."""

    def __init__(self, *, idle=False, is_orphaned=False):
        self.idle = idle
        self.is_orphaned = is_orphaned


class Connection(Setup):
    """A relayed connection; it leaves the set when it is ended."""

    def __init__(self, live, *, active=0.0, port="port", app_tls=None, allows_late_auth=False, **relay):
        super().__init__()
        self.live = live
        self.active = active
        self.port = port
        self.app_tls = app_tls
        self.allows_late_auth = allows_late_auth
        self.relay = Relay(**relay)
        self.retired = 0
        live.opened(self)

    def retire(self):
        self.retired += 1
        self.live.closed(self)

    def abandon(self):
        super().abandon()
        self.live.closed(self)


class Live(LiveConnections):
    """Notes how many there are whenever one has left."""

    def __init__(self):
        super().__init__(self._note)
        self.counts = []

    def _note(self):
        self.counts.append(self.count)


@pytest.fixture
def live():
    return Live()


def test_a_connection_is_counted_from_its_accept_to_its_end(live):
    setup = Setup()
    live.begin(setup)
    assert (live.count, live.counts) == (1, [])
    connection = Connection(live)
    live.setup_over(setup)
    live.setup_over(setup)
    assert live.relayed == {connection}
    live.closed(connection)
    live.closed(connection)
    assert live.counts == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("idle", "active", "ended"), [(True, 4.9, True), (True, 5.0, True), (True, 5.1, False), (False, 0.0, False)]
)
def test_connections_that_are_idle_for_long_are_ended(live, idle, active, ended):
    connections = [Connection(live, idle=idle, active=active) for _ in range(3)]
    live.retire_idle(5.0)
    assert [connection.retired for connection in connections] == [int(ended)] * 3
    assert live.count == (0 if ended else 3)


@pytest.mark.parametrize(
    ("is_orphaned", "active", "ended"), [(True, 5.0, True), (True, 5.1, False), (False, 0.0, False)]
)
def test_connections_that_nobody_else_ends_are_ended(live, is_orphaned, active, ended):
    connection = Connection(live, idle=True, is_orphaned=is_orphaned, active=active)
    live.retire_orphaned(5.0)
    assert connection.retired == int(ended)


@pytest.mark.parametrize(
    ("port", "app_tls", "idle", "allows_late_auth", "ended"),
    [
        ("this", "tls", True, True, True),
        ("that", "tls", True, True, False),
        ("this", None, True, True, False),
        ("this", "tls", False, True, False),
        ("this", "tls", True, False, False),
    ],
)
def test_connections_whose_client_may_be_asked_for_a_certificate_are_ended(
    live, port, app_tls, idle, allows_late_auth, ended
):
    connection = Connection(live, port=port, app_tls=app_tls, idle=idle, allows_late_auth=allows_late_auth)
    live.retire_late_auth("this")
    assert connection.retired == int(ended)


def test_abandoning_resets_all(live):
    setup, connection = Setup(), Connection(live)
    live.begin(setup)
    live.abandon()
    assert (setup.abandoned, connection.abandoned) == (1, 1)


def test_the_relayed_connections_of_one_port_are_reset():
    live = Live()
    mine, other = Connection(live), Connection(live, port="other")
    setup = Setup()
    live.begin(setup)
    live.reset("port")
    assert (mine.abandoned, other.abandoned, setup.abandoned) == (1, 0, 0)
