"""Captures as resources: told before they begin, bounded by the daemon, and nothing that another kind can ask for."""

import asyncio
import contextlib
import datetime as dt
import json

import pytest

from sidestep.kube.session_specs import DEFINITIONS
from sidestep.laptop.handler import NoHandler
from sidestep.model.errors import RefusedError
from sidestep.model.intercept import SessionKind, Snap
from sidestep.model.pod import PodKey
from sidestep.node.sessions import capture_bounds
from sidestep.protocols.capture_frames import FrameKind, encode
from sidestep.proxy.control.messages import Open
from sidestep.tunnel.messages import Ended
from tests.integration.kube import cluster
from tests.integration.kube.cluster import GROUP, Daemon, Laptop, a_session, daemon, is_not_served_elsewhere, run, until

PLURAL = DEFINITIONS[SessionKind.CAPTURE].plural


class Sink(NoHandler):
    """Takes the frames of captured connections."""

    def __init__(self):
        super().__init__()
        self.got = b""
        self.ended = 0

    async def dial(self, opening):
        assert opening.capture
        return Taken(self)


class Taken:
    def __init__(self, sink):
        self.sink = sink
        self._ended = asyncio.Event()

    async def read(self):
        await self._ended.wait()
        return b""

    async def write(self, data):
        self.sink.got += data

    async def write_eof(self):
        self.sink.ended += 1
        self._ended.set()

    def hung_up(self):
        return False

    def close(self):
        pass

    def abort(self):
        pass


def capturing(api, *, handler=None, **spec):
    values = {"kind": "wiretap", "capture": "all", "headers": (), "duration": 600.0, "max_bytes": 4096, **spec}
    return Laptop(api, handler=handler or Sink(), **values)


def resource(api, name="orders-1-capture"):
    return cluster.resource(api, name, PLURAL)


def status(api, name="orders-1-capture"):
    return cluster.status(api, name, PLURAL)


def events(api, reason=""):
    found = api.objects.get(("/api/v1", "events"), {}).values()
    return [each for each in found if reason in {"", each["reason"]}]


def ended(laptop):
    return [each.reason for each in laptop.ear.events if isinstance(each, Ended)]


@contextlib.asynccontextmanager
async def a_stream(node, uid):
    opening = Open(
        seq=1, stream=1, uid=uid, port=8443, client="10.0.0.9", client_port=5000, protocol="tcp", tls=True,
        server_name="",
    )  # fmt: skip
    ours = await node.sessions.open_stream(opening, pod=PodKey("shop", "orders-1"), proxy=1)
    ours.setblocking(False)
    with ours:
        yield ours


def test_from_create_to_frames_to_delete():
    async def test(api):
        async with daemon(api) as node:
            sink = Sink()
            laptop = capturing(api, handler=sink)
            await until(lambda: laptop.ear.active == 1, what="active")
            found = resource(api)
            assert found["spec"].items() >= {"owner": "ada", "snap": "All", "duration": "10m", "maxBytes": 4096}.items()
            assert cluster.resource(api) is None
            assert cluster.resource(api, plural="wiretaps") is None
            [intercept] = node.cluster.intercepts()
            assert (intercept.capture, intercept.duration, intercept.max_bytes) == (Snap.ALL, 600.0, 4096)
            await until(lambda: status(api).get("state") == "Active", what="state Active")
            assert {each["type"]: each["status"] for each in status(api)["conditions"]} == {
                "Accepted": "True",
                "Active": "True",
            }
            frame = encode(FrameKind.DATA, 1, b"hello")
            async with a_stream(node, intercept.uid) as ours:
                await asyncio.get_running_loop().sock_sendall(ours, frame)
                await until(lambda: sink.got == frame, what="the frame")
            await laptop.end()
            assert resource(api) is None
            await until(lambda: events(api, "CaptureEnded"), what="the Event of the end")
            [told] = events(api, "CaptureEnded")
            assert f", {len(frame)} bytes from node n1, every byte of pod/orders-1" in told["message"]
            assert node.cluster.intercepts() == ()

    run(test)


def test_it_is_told_before_it_is_accepted():
    async def test(api):
        async with daemon(api):
            laptop = capturing(api, capture="heads", pod="orders-1", workload="orders-1", duration=90.0)
            await until(lambda: laptop.ear.active == 1, what="active")
            [told] = events(api)
            assert told["reason"] == "CaptureStarted"
            assert told["metadata"]["namespace"] == "shop"
            about = told["involvedObject"]
            assert (about["kind"], about["namespace"], about["name"]) == ("Capture", "shop", "orders-1-capture")
            assert about["uid"] == resource(api)["metadata"]["uid"]
            assert told["message"] == (
                "ada captures, for at most 1m30s and 4096 bytes from each node, heads, with secrets redacted, of "
                "orders-1, port 8443, pod orders-1, everything"
            )
            versions = [(kind, key[1], value) for _, kind, key, value in api.log]
            posted = next(at for at, (_, plural, _) in enumerate(versions) if plural == "events")
            accepted = next(
                at for at, (_, plural, value) in enumerate(versions)
                if plural == PLURAL and value.get("status", {}).get("specDigest")
            )  # fmt: skip
            assert posted < accepted
            await laptop.end()

    run(test)


def test_a_long_filter_does_not_hide_what_is_captured():
    async def test(api):
        async with daemon(api):
            paths = [{"match": "Prefix", "value": "/" + "x" * 4000}] * 32
            await api.put(GROUP, PLURAL, a_session("long", filter={"paths": paths}, owner="o" * 128, snap="All"))
            await until(lambda: events(api, "CaptureStarted"), what="the Event")
            message = events(api)[0]["message"]
            assert message.startswith("o" * 128 + " captures, for at most 1h and 1073741824 bytes from each node, ")
            assert "every byte of pod/orders-1, port 8443, all pods" in message
            assert len(message) <= 1024

    run(test)


def test_without_the_event_nothing_is_captured_and_other_sessions_go_on(monkeypatch):
    monkeypatch.setattr("sidestep.node.cluster.publisher.UNTOLD_AGAIN", 0.3)

    async def test(api):
        api.forbid("create", "events")
        async with daemon(api) as node:
            laptop = capturing(api)
            outcome = await laptop.task
            assert "the Event that tells of the capture cannot be written" in str(outcome.error)
            assert "forbidden" in str(outcome.error)
            assert node.cluster.intercepts() == ()
            stubborn = await api.put(GROUP, PLURAL, a_session("stubborn"))
            other = Laptop(api, user="bob")
            await until(lambda: other.ear.active == 1, what="another session")
            await until(lambda: status(api, "stubborn").get("state") == "Refused", what="the refusal")
            assert "specDigest" not in status(api, "stubborn")
            api.forbidden.clear()
            await until(lambda: status(api, "stubborn").get("specDigest"), what="acceptance once it can be told")
            assert [each["involvedObject"]["uid"] for each in events(api)] == [stubborn["metadata"]["uid"]]
            await other.end()

    run(test)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"duration": "25h"}, "must be between"),
        ({"duration": "0s"}, "must be between"),
        ({"duration": "for ever"}, "not a duration"),
        ({"duration": 60}, "duration"),
        ({"maxBytes": 1}, "spec.maxBytes"),
        ({"maxBytes": 2**63 - 1}, "spec.maxBytes"),
        ({"maxBytes": -1}, "spec.maxBytes"),
        ({"maxBytes": 0.5}, "maxBytes"),
        ({"snap": "all"}, "snap"),
        ({"snap": "Secrets"}, "snap"),
        ({"port": "../8443"}, "spec.port"),
        ({"port": 70000}, "70000"),
        ({"pod": "orders-1/../x"}, "spec.pod"),
        ({"workload": "other-namespace/pod/orders-1"}, "is no workload"),
        ({"filter": {"methods": ["G T"]}}, "not a method"),
        ({"session": {"publicKey": "A" * 44}}, "key"),
    ],
)
def test_what_cannot_be_served_is_refused_in_the_status(spec, told):
    async def test(api):
        async with daemon(api) as node:
            await api.put(GROUP, PLURAL, a_session("hostile", **spec))
            refused = lambda: status(api, "hostile").get("state") in {"Refused", "Pending"}  # noqa: E731
            await until(refused, what="a status")
            if told != "70000":
                await until(lambda: told in status(api, "hostile").get("message", ""), what=lambda: told)
            assert node.cluster.intercepts() == ()

    run(test)


def test_neither_an_intercept_nor_a_wiretap_can_ask_for_one():
    async def test(api):
        async with daemon(api) as node:
            asked = {"capture": "all", "snap": "All", "duration": "1h", "maxBytes": 2**30, "kind": "wiretap"}
            for plural, spec in (("intercepts", {}), ("wiretaps", {"kind": "wiretap", "user": "bob"})):
                laptop = Laptop(api, **spec)
                create = laptop.session._api.create

                async def with_more(path, body, create=create):
                    value = json.loads(body)
                    value["spec"] |= asked
                    return await create(path, json.dumps(value).encode())

                laptop.session._api.create = with_more
                await until(lambda laptop=laptop: laptop.ear.active == 1, what="active")
                assert cluster.resource(api, plural=plural)["spec"]["snap"] == "All"
            assert [each.capture for each in node.cluster.intercepts()] == [Snap.NOTHING] * 2
            assert events(api) == []

    run(test)


def test_the_daemon_ends_it_after_its_time():
    async def test(api):
        async with daemon(api) as node:
            laptop = capturing(api, duration=0.5)
            outcome = await laptop.task
            assert outcome.ended == Ended("the capture has lasted 500ms", over=True)
            assert ended(laptop) == ["the capture has lasted 500ms"]
            assert node.cluster.intercepts() == ()
            await until(lambda: resource(api) is None, what="deleted by its session")
            await until(lambda: events(api, "CaptureEnded"), what="the Event")
            assert events(api, "CaptureEnded")[0]["message"].startswith("ada captured, for ")

    run(test)


def test_a_session_that_does_not_listen_cannot_have_more(monkeypatch):
    """Neither more time nor more bytes; and what is over is deleted, though its session goes on renewing it."""
    monkeypatch.setattr("sidestep.node.cluster.service.SPREAD", 0.1)

    async def test(api):
        async with daemon(api) as node:
            sink = Sink()
            laptop = capturing(api, handler=sink, max_bytes=5000)
            await until(lambda: laptop.ear.active == 1, what="active")
            laptop.session._finish = lambda _outcome: None
            uid = resource(api)["metadata"]["uid"]
            loop = asyncio.get_running_loop()
            async with a_stream(node, uid) as ours, a_stream(node, uid) as other:
                await loop.sock_sendall(ours, b"a" * 3000)
                await until(lambda: len(sink.got) == 3000, what="what may pass")
                await loop.sock_sendall(other, b"b" * 100_000)
                await until(lambda: ended(laptop), what="the end")
            assert ended(laptop) == ["the capture has sent 5000 bytes"]
            assert sink.got == b"a" * 3000 + b"b" * 2000
            with pytest.raises(RefusedError, match="the session is gone"):
                async with a_stream(node, uid):
                    pass
            await until(lambda: resource(api) is None, what="deleted by the daemon")
            await until(lambda: events(api, "CaptureEnded"), what="the Event of the end")
            [told] = events(api, "CaptureEnded")
            assert ", 5000 bytes from node n1" in told["message"]
            del laptop.session._finish
            await laptop.end()

    run(test)


def test_a_broken_tunnel_gives_no_more_bytes_and_no_more_time():
    async def test(api):
        async with daemon(api) as node:
            sink = Sink()
            laptop = capturing(api, handler=sink, max_bytes=5000, duration=6.0)
            await until(lambda: laptop.ear.active == 1, what="active")
            uid = resource(api)["metadata"]["uid"]
            bounds = node.sessions._sessions[uid].bounds
            loop = asyncio.get_running_loop()
            async with a_stream(node, uid) as ours:
                await loop.sock_sendall(ours, b"a" * 4000)
                await until(lambda: len(sink.got) == 4000, what="what may pass")
            node.sessions._sessions[uid].connection.close()
            interrupted = lambda: any(isinstance(each, tuple) for each in laptop.ear.events)  # noqa: E731
            await until(interrupted, what="the interruption")
            await until(lambda: laptop.ear.active == 1, what="active again")
            assert node.sessions._sessions[uid].bounds is bounds
            async with a_stream(node, uid) as ours:
                await loop.sock_sendall(ours, b"b" * 4000)
                outcome = await laptop.task
            assert outcome.ended.reason == "the capture has sent 5000 bytes"
            assert sink.got == b"a" * 4000 + b"b" * 1000

    run(test)


def test_a_daemon_that_starts_anew_does_not_begin_the_time_anew(monkeypatch):
    monkeypatch.setattr(capture_bounds, "STARTUP", 8.0)

    async def test(api):
        # For the daemons it was made 16 minutes ago: it has the seconds of STARTUP left, instead of 16 minutes.
        api.stamp = lambda: f"{dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1000):%Y-%m-%dT%H:%M:%SZ}"
        first = Daemon(api, name="first")
        await first.start()
        laptop = capturing(api, duration=1000.0)
        await until(lambda: laptop.ear.active == 1, what="active")
        await first.stop(graceful=False)
        async with daemon(api, name="second"):
            outcome = await laptop.task
        assert outcome.ended.reason == "the capture has lasted 16m40s"

    run(test)


def test_a_spec_that_is_edited_is_refused_for_good():
    """Where the API server lets it pass, the daemon follows no other bounds, and after a restart it takes none."""

    async def test(api):
        first = Daemon(api, name="first")
        await first.start()
        laptop = capturing(api, capture="heads", duration=100.0)
        await until(lambda: laptop.ear.active == 1, what="active")
        found = resource(api)
        found["spec"] |= {"snap": "All", "duration": "24h", "maxBytes": 2**40}
        await api.put(GROUP, PLURAL, found)
        await until(lambda: "not followed" in status(api).get("message", ""), what="the message")
        [intercept] = first.cluster.intercepts()
        assert (intercept.capture, intercept.duration) == (Snap.HEADS, 100.0)
        await first.stop(graceful=False)
        async with daemon(api, name="second") as second:
            await until(lambda: status(api).get("state") == "Refused", what="the refusal")
            assert second.cluster.intercepts() == ()
            await laptop.end()

    run(test)


def test_it_cannot_reach_into_another_namespace():
    run(lambda api: is_not_served_elsewhere(api, PLURAL))


def test_without_its_definition_nothing_else_suffers():
    async def test(api):
        api.unknown.add(PLURAL)
        async with daemon(api) as node:
            with pytest.raises(RefusedError, match=r"captures.sidestep.dev is not installed .* deploy/inspection.yaml"):
                await capturing(api).task
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1, what="an intercept")
            assert len(node.cluster.intercepts()) == 1
            await laptop.end()

    run(test)


def test_who_lacks_the_right_is_told_the_verb_and_the_role():
    async def test(api):
        api.forbid("create", PLURAL)
        async with daemon(api):
            with pytest.raises(RefusedError) as refused:
                await capturing(api).task
            assert "you may not create captures.sidestep.dev in namespace shop" in str(refused.value)
            assert "--clusterrole=sidestep-capturer --user=eve -n shop" in str(refused.value)

    run(test)


def test_a_time_that_is_over_before_it_begins():
    """A resource from long ago, as of a daemon's point of view: a node whose clock is ahead ends it at once."""

    async def test(api):
        api.stamp = lambda: "2025-01-01T00:00:00Z"
        async with daemon(api):
            outcome = await capturing(api, duration=60.0).task
            assert outcome.ended.reason == "the capture has lasted 1m"

    run(test)
