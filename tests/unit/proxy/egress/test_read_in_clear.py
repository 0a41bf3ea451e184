"""HTTP that a pod sends in clear, and that stays so: each request on a connection is judged, by the host it is for."""

from __future__ import annotations

import contextlib

import h2.config
import h2.connection
import pytest

from sidestep.model.egress import Destination, EgressMode
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, Match, Mode, Pattern, Rule
from tests.unit.proxy.egress.test_outbound import GET, HERE, OK, Scene, listener, readable

NO_PASTE = Rule("no-paste", Action.BLOCK, match=Match(server_names=("paste.test", "*.paste.test")))
ADMIN = Rule("no-admin", Action.BLOCK, match=Match(Filter(paths=(PathCondition(PathTest.PREFIX, "/admin"),))))
SECRET = Rule("no-key", Action.BLOCK, patterns=(Pattern(regex="sk_live_[0-9a-z]{8}"),))


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def get(host, path="/"):
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def passes(scene, client, request, server=None):
    """A request that reaches its server, and the answer to it; the server's end of the connection."""
    client.sendall(request)
    server = server or scene.accepted()
    assert scene.told(server) == request
    server.sendall(OK)
    assert scene.told(client) == OK
    return server


def is_refused(scene, client, server=None, status=b"403"):
    told = scene.told(client)
    assert told.startswith(b"HTTP/1.1 " + status), told
    assert scene.untouched() if server is None else not readable(server) or server.recv(1) == b""
    return True


def test_the_first_request_is_judged_before_its_server_hears_of_it(scene):
    scene.configure(rules=[NO_PASTE])
    client = scene.client(get("paste.test"))
    assert is_refused(scene, client)
    scene.ended(client)
    assert scene.counters == {"outbound": 1, "inspection_blocked": 1}
    assert scene.records == [("alert", "Block"), ("flow", None)]


def test_each_request_of_a_connection_is_judged_by_its_own_host(scene):
    scene.configure(rules=[NO_PASTE])
    client = scene.client()
    server = passes(scene, client, get("api.test"))
    passes(scene, client, get("api.test"), server)
    client.sendall(get("Paste.test:80"))
    assert is_refused(scene, client, server)
    scene.ended(client, server)
    assert scene.counters["inspection_blocked"] == 1


def test_so_is_one_that_comes_together_with_others(scene):
    scene.configure(rules=[NO_PASTE])
    client = scene.client(get("api.test") + get("x.paste.test") + get("api.test"))
    server = scene.accepted()
    assert scene.told(server) == get("api.test")
    server.sendall(OK)
    told = scene.told(client)
    while b"403" not in told:
        told += scene.told(client)
    assert told.startswith(OK + b"HTTP/1.1 403")
    scene.ended(client, server)


def test_rules_about_requests_hold_for_what_is_only_observed(scene):
    scene.configure(rules=[ADMIN, SECRET])
    client = scene.client()
    server = passes(scene, client, get("api.test"))
    client.sendall(get("api.test", "/%61dmin/users"))
    assert is_refused(scene, client, server)
    body = b"key=sk_live_0123abcd"
    other = scene.client(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert is_refused(scene, other)
    scene.ended(client, server, other)


def test_detecting_blocks_nothing_and_tells_of_each_request(scene):
    scene.configure(rules=[NO_PASTE], mode=Mode.DETECT)
    client = scene.client()
    server = passes(scene, client, get("paste.test"))
    passes(scene, client, get("api.test"), server)
    passes(scene, client, get("paste.test"), server)
    scene.ended(client, server)
    assert [each for each in scene.records if each[0] == "alert"] == [("alert", "WouldBlock")] * 2
    assert scene.process.records.made[0].http.hostname == "paste.test"


def test_a_destination_is_meant_by_the_host_of_each_request(scene):
    """The first request is for a host that no policy means, and the second for one that is."""
    scene.configure(Destination("d", networks=(HERE,), names=("bank.test",)), rules=[Rule("all", Action.BLOCK)])
    client = scene.client()
    server = passes(scene, client, get("api.test"))
    client.sendall(get("bank.test"))
    assert is_refused(scene, client, server)
    scene.ended(client, server)


@pytest.mark.parametrize("host", [b"paste.test:", b"p%61ste.test", b"paste.test:000080"])
@pytest.mark.parametrize("fail", [False, True])
def test_a_host_that_servers_may_read_in_another_way_is_counted_or_refused(scene, host, fail):
    scene.configure(rules=[NO_PASTE], fail=fail)
    client = scene.client()
    server = passes(scene, client, get("api.test"))
    request = b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    if fail:
        client.sendall(request)
        assert is_refused(scene, client, server)
    else:
        passes(scene, client, request, server)
    scene.ended(client, server)
    assert scene.counters[f"inspection_{'closed' if fail else 'bypassed'}_request_server_name"] == 1


def test_a_host_that_is_in_doubt_is_not_told_where_no_rule_depends_on_it(scene):
    scene.configure(rules=[ADMIN], fail=True)
    client = scene.client()
    server = passes(scene, client, b"GET / HTTP/1.0\r\n\r\n")
    scene.ended(client, server)
    assert scene.counters == {"outbound": 1}


@pytest.mark.parametrize("fail", [False, True])
def test_what_cannot_be_read_later_on_a_connection_is_counted_or_closed(scene, fail):
    scene.configure(rules=[NO_PASTE], fail=fail)
    client = scene.client()
    server = passes(scene, client, get("api.test"))
    odd = b"GET / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    client.sendall(odd)
    if fail:
        assert scene.run(lambda: readable(client))
        with contextlib.suppress(ConnectionResetError):
            client.recv(4096)
        assert not readable(server) or server.recv(1) == b""
    else:
        assert scene.told(server) == odd
    scene.ended(client, server)
    how = "closed" if fail else "bypassed"
    assert [name for name in scene.counters if name.startswith(f"inspection_{how}_h1")]


def test_requests_to_a_proxy_are_judged_by_the_server_that_is_asked_for(scene):
    scene.configure(rules=[NO_PASTE], fail=True)
    client = scene.client()
    asked = b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n"
    server = passes(scene, client, asked % (b"api.test", b"api.test"))
    passes(scene, client, asked % (b"other.test", b"other.test"), server)
    client.sendall(asked % (b"paste.test", b"paste.test"))
    assert is_refused(scene, client, server)
    scene.ended(client, server)


def test_a_tunnel_is_judged_by_its_name_and_passes(scene):
    scene.configure(rules=[NO_PASTE], fail=True)
    request = b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n"
    client = scene.client(request)
    server = scene.accepted()
    assert scene.told(server) == request
    server.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    assert scene.told(client) == b"HTTP/1.1 200 OK\r\n\r\n"
    client.sendall(b"\x16\x03\x01anything")
    assert scene.told(server) == b"\x16\x03\x01anything"
    scene.ended(client, server)
    refused = scene.client(request.replace(b"api.test", b"paste.test"))
    assert scene.is_reset(refused)


def test_clear_http_that_a_destination_wants_in_tls_is_told_of_by_its_host(scene):
    """The first request is for a host that may leave in clear, and the second for one that may not."""
    wanted = Destination("tls", EgressMode.ORIGINATE, names=("bank.test",), networks=(HERE,))
    scene.configure(wanted, Destination("rest", networks=(HERE,)))
    client = scene.client()
    server = passes(scene, client, get("api.test"))
    passes(scene, client, get("bank.test"), server)
    scene.ended(client, server)
    assert scene.counters["inspection_bypassed_request_another_host"] == 1
    scene.configure(wanted, Destination("rest", networks=(HERE,)), fail=True)
    client = scene.client()
    server = passes(scene, client, get("api.test"))
    client.sendall(get("bank.test"))
    assert is_refused(scene, client, server)
    scene.ended(client, server)


def test_policies_that_change_hold_from_the_next_request_on(scene):
    scene.configure(rules=[NO_PASTE])
    client = scene.client()
    server = passes(scene, client, get("api.test"))
    scene.configure(rules=[NO_PASTE, ADMIN])
    client.sendall(get("api.test", "/admin"))
    assert is_refused(scene, client, server)
    scene.ended(client, server)


def test_a_session_is_told_of_every_request(scene):
    scene.listen(listener(records="all"), listener("f", heads_only=True))
    client = scene.client()
    server = passes(scene, client, get("api.test", "/one"))
    passes(scene, client, get("api.test", "/two"), server)
    scene.ended(client, server)
    assert scene.run(lambda: len(scene.told_live()) == 3)
    assert sorted(each.event_type for each in scene.told_live()) == ["flow", "http", "http"]
    assert [each.http.url for each in scene.told_live() if each.event_type == "http"] == ["/one", "/two"]
    assert [each.path for each in scene.process.notes if not each.is_answer] == [b"/one", b"/two"]
    assert scene.records == scene.process.lines == []


# --- HTTP/2 ---------------------------------------------------------------------------------------------------------


def streams(*hosts, path="/"):
    """A client that speaks HTTP/2 from its first byte, and its requests."""
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    made.initiate_connection()
    for number, host in enumerate(hosts):
        head = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", host)]
        made.send_headers(1 + 2 * number, head, end_stream=True)
    return made


def heads(scene, sock, side, wanted):
    """The heads that arrive, by stream, until there are so many."""
    found = {}
    while len(found) < wanted:
        for event in side.receive_data(scene.told(sock)):
            if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
                found[event.stream_id] = dict(event.headers)
    return found


def test_streams_in_clear_are_judged_each_by_its_authority(scene):
    scene.configure(rules=[NO_PASTE], fail=True)
    speaks = streams("api.test", "paste.test", "api.test")
    client = scene.client(speaks.data_to_send())
    server = scene.accepted()
    side = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    side.initiate_connection()
    server.sendall(side.data_to_send())
    arrived = heads(scene, server, side, 2)
    assert [each[b":authority"] for each in arrived.values()] == [b"api.test", b"api.test"]
    [blocked] = {1, 3, 5} - {*arrived} or {3}
    assert heads(scene, client, speaks, 1)[blocked][b":status"] == b"403"
    scene.ended(client, server)
    assert scene.counters == {"outbound": 1, "inspection_blocked": 1}


@pytest.mark.parametrize("begun", [0, 1, 10, 23])
def test_a_client_that_lets_its_http2_server_speak_first_is_judged_all_the_same(scene, begun):
    """It waits until the server has said its SETTINGS, with `begun` bytes of its preface sent. Then it is read on a new
    connection to its server, as each that is read."""
    scene.configure(rules=[NO_PASTE], fail=True)
    speaks = streams("paste.test")
    data = speaks.data_to_send()
    client = scene.client()
    server = scene.accepted()
    client.sendall(data[:begun])
    side = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    side.initiate_connection()
    server.sendall(settings := side.data_to_send())
    assert not scene.stepped.run(lambda: readable(client), within=0.3)
    client.sendall(data[begun:])
    again = scene.accepted()
    again.sendall(settings)
    assert heads(scene, client, speaks, 1)[1][b":status"] == b"403"
    assert scene.counters == {"outbound": 1, "inspection_blocked": 1}
    scene.ended(client, again)


def test_http2_in_clear_that_a_destination_wants_in_tls_is_told_and_read_or_closed(scene):
    scene.configure(Destination("tls", EgressMode.ORIGINATE, networks=(HERE,)), rules=[NO_PASTE])
    client = scene.client(streams("paste.test").data_to_send())
    server = scene.accepted()
    assert scene.run(lambda: scene.counters.get("inspection_blocked"))
    assert scene.counters["inspection_bypassed_http2_in_clear"] == 1
    scene.ended(client, server)
    scene.configure(Destination("tls", EgressMode.ORIGINATE, networks=(HERE,)), fail=True)
    assert scene.is_reset(scene.client(streams("api.test").data_to_send()))
    assert scene.counters["inspection_closed_http2_in_clear"] == 1


def test_the_head_of_a_first_request_is_not_asked_for_twice(scene):
    """In two pieces, the second with more requests: what was peeked at is read once."""
    scene.configure(rules=[NO_PASTE])
    client = scene.client(GET[:20])
    assert scene.run(lambda: scene.process.setups)
    client.sendall(GET[20:] + GET)
    server = scene.accepted()
    told = b""
    while len(told) < 2 * len(GET):
        told += scene.told(server)
        if told == GET:
            server.sendall(OK)
    assert told == GET + GET
    scene.ended(client, server)
