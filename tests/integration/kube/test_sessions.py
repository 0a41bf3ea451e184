"""Resources, tunnels and sessions between real ends, with a real API in between that is only small."""

import asyncio
import base64
import contextlib

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.kube.api import Api
from sidestep.kube.portforward import PortForward
from sidestep.laptop.pod_access import PodAccess
from sidestep.model.errors import RefusedError
from sidestep.model.pod import PodKey
from sidestep.node.cluster import tunnel_server
from sidestep.proxy.control.messages import Open
from sidestep.tunnel.cli_end import CliEnd
from sidestep.tunnel.limits import TunnelLimits
from sidestep.tunnel.messages import VERSION, Ended
from sidestep.tunnel.node_tls import make_node_tls, pinned_context
from sidestep.tunnel.proof import generate, sign
from tests.integration.kube.cluster import GROUP, Daemon, Laptop, a_pod, daemon, resource, run, status, until


@contextlib.asynccontextmanager
async def echo():
    async def serve(reader, writer):
        while data := await reader.read(65536):
            writer.write(data.upper())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def an_opening(uid):
    return Open(
        seq=1,
        stream=1,
        uid=uid,
        port=8443,
        client="10.0.0.9",
        client_port=5000,
        protocol="http/1.1",
        tls=True,
        server_name="a.b",
    )


def test_from_create_to_bytes_to_delete():
    async def test(api):
        async with daemon(api) as node, echo() as port:
            laptop = Laptop(api, handler_port=port)
            await until(lambda: laptop.ear.active == 1, what="active")
            found = resource(api)
            assert found["spec"]["owner"] == "ada"
            assert found["spec"]["workload"] == "pod/orders-1"
            assert found["spec"]["filter"] == {"headers": [{"name": "x-dev", "value": "ada"}]}
            uid = found["metadata"]["uid"]
            assert [each.uid for each in node.cluster.intercepts()] == [uid]
            ours = await node.sessions.open_stream(an_opening(uid), pod=PodKey("shop", "orders-1"), proxy=1)
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            sent = b"hello, handler " * 40_000
            sending = asyncio.create_task(loop.sock_sendall(ours, sent))
            got = b""
            while len(got) < len(sent):
                got += await loop.sock_recv(ours, 65536)
            await sending
            assert got == sent.upper()
            ours.close()
            await until(lambda: status(api).get("state") == "Active", what="state Active")
            shown = status(api)
            assert shown["activePods"] == 1
            assert shown["filter"] == "header x-dev=ada"
            assert {each["type"]: each["status"] for each in shown["conditions"]} == {
                "Accepted": "True",
                "Active": "True",
            }
            assert list(shown["nodes"]) == ["n1"]
            outcome = await laptop.end()
            assert outcome.error is None
            assert resource(api) is None
            await until(lambda: node.cluster.intercepts() == (), what="nothing served")

    run(test)


def test_two_users_two_filters_one_workload_and_a_conflict_that_names_the_holder():
    async def test(api):
        async with daemon(api) as node:
            ada, bob = Laptop(api, user="ada"), Laptop(api, user="bob")
            await until(lambda: ada.ear.active == 1 and bob.ear.active == 1, what="both")
            assert sorted(name for _, name in api.objects[GROUP, "intercepts"]) == ["orders-1", "orders-1-2"]
            eve = Laptop(api, user="eve", name="greedy", headers=())
            outcome = await eve.task
            assert "a global intercept and any other exclude each other" in str(outcome.error)
            assert "claimed owner ada" in str(outcome.error)
            assert len(node.cluster.intercepts()) == 2
            assert resource(api, "greedy") is None
            await ada.end()
            await bob.end()

    run(test)


def test_several_nodes_and_pods_that_come_and_go():
    async def test(api):
        async with daemon(api, node="n1", pods=("orders-1",)) as first, daemon(api, node="n2", pods=()) as second:
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1, what="n1")
            second.controller.inventory = type(second.controller.inventory)(
                pods={pod.key: pod for pod in [a_pod("orders-1", key=PodKey("shop", "orders-1"))]}
            )
            second.cluster.changed()
            await until(lambda: set(status(api)["nodes"]) == {"n1", "n2"}, what="two nodes")
            await until(lambda: len(second.cluster.intercepts()) == 1, what="a tunnel to n2")
            first.controller.inventory = type(first.controller.inventory)()
            first.controller.changed()
            await until(lambda: set(status(api)["nodes"]) == {"n2"}, what="n1 gone")
            assert laptop.ear.active == 1
            await laptop.end()

    run(test)


def test_daemons_of_another_release_serve_and_are_told_of_once(monkeypatch):
    monkeypatch.setattr(tunnel_server, "__version__", "9.9.9")

    async def test(api):
        async with daemon(api, node="n1"), daemon(api, node="n2", pods=("orders-1",)) as second:
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1 and second.cluster.intercepts(), what="both nodes")
            assert [note.partition(",")[0] for note in laptop.ear.notes] == ["The node daemon is sidestep 9.9.9"]
            await laptop.end()

    run(test)


def test_a_daemon_of_a_much_later_release_ends_the_session_with_a_reason(monkeypatch):
    monkeypatch.setattr(tunnel_server, "VERSION", VERSION + 2)

    async def test(api):
        async with daemon(api):
            outcome = await Laptop(api).task
            assert f"speaks version {VERSION + 2} of the tunnel, this command {VERSION}" in str(outcome.error)
            assert resource(api) is None

    run(test)


def test_a_new_daemon_takes_over_the_nodes_entry_and_the_session():
    async def test(api):
        old = Daemon(api, name="old")
        await old.start()
        laptop = Laptop(api)
        await until(lambda: laptop.ear.active == 1, what="old")
        new = Daemon(api, name="new")
        await new.start()
        await until(lambda: status(api)["nodes"]["n1"]["daemon"]["pod"] == "new", what="the new one speaks")
        await until(lambda: len(new.cluster.intercepts()) == 1, what="a tunnel to the new one")
        await old.stop()
        assert status(api)["nodes"]["n1"]["daemon"]["pod"] == "new", "the old one takes back only what is its own"
        await until(lambda: laptop.ear.active == 1, what="still active")
        assert not laptop.task.done()
        await laptop.end()
        await new.stop()

    run(test)


def test_what_is_created_while_the_session_is_stopped_is_deleted(monkeypatch):
    create = Api.create

    async def test(api):
        made, answers = asyncio.Event(), asyncio.Event()

        async def late(*arguments):
            answer = await create(*arguments)
            made.set()
            await answers.wait()
            return answer

        monkeypatch.setattr(Api, "create", late)
        laptop = Laptop(api)
        await made.wait()
        assert resource(api)["spec"]["owner"] == "ada"
        ending = asyncio.ensure_future(laptop.end())
        await asyncio.sleep(0.1)
        answers.set()
        await ending
        assert resource(api) is None

    run(test)


def test_an_interruption_has_the_reason_that_the_daemon_gave():
    async def test(api):
        node = Daemon(api)
        await node.start()
        laptop = Laptop(api)
        await until(lambda: laptop.ear.active == 1, what="active")
        await node.stop()
        await until(lambda: ("interrupted", "the node daemon stops") in laptop.ear.events, what="the reason")
        await laptop.end()

    run(test)


def test_after_a_silence_the_next_tunnel_is_given_more_time():
    """What is late because of load is not given up again and again: the permitted silence doubles."""

    async def test(api):
        async with daemon(api):
            laptop = Laptop(api, limits=TunnelLimits(keepalive=0.2, silent_intervals=2))
            for seconds in ("0.4", "0.8"):
                await until(lambda: laptop.ear.active == 1, what="active")
                api.forwarding.clear()
                silent = ("interrupted", f"the other end of the tunnel was silent for {seconds} s")
                await until(lambda silent=silent: silent in laptop.ear.events, what=f"silent for {seconds} s")
                api.forwarding.set()
            await laptop.end()

    run(test)


def test_versions_of_the_status_that_arrive_together_open_one_tunnel(monkeypatch):
    """A laptop that is behind reads several events of its watch at once. Two tunnels would end each other for ever."""
    opened = []
    forward = PortForward.open

    async def counted(api, **where):
        opened.append(where["pod"])
        return await forward(api, **where)

    async def test(api):
        monkeypatch.setattr(PortForward, "open", counted)
        async with daemon(api):
            laptop = Laptop(api)
            apply = laptop.session.apply
            laptop.session.apply = lambda value: (apply(value), apply(value))
            await until(lambda: laptop.ear.active == 1, what="active")
            assert opened == ["sidestep-n1"]
            await laptop.end()
            assert opened == ["sidestep-n1"]

    run(test)


def test_an_api_server_that_is_away_and_comes_back(monkeypatch):
    async def test(api):
        async with daemon(api) as node:
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1, what="active")
            await api.stop()
            await until(lambda: node.sessions.intercepts() == (), what="port-forwards break with the API server")
            await until(lambda: laptop.ear.active == 0, what="the interruption to be told")
            assert not laptop.task.done()
            # An API server that starts refuses everybody until it has read its roles.
            for verb in ("list", "watch", "patch"):
                api.forbid(verb, "intercepts")
            api.forbid("get", "pods/portforward")
            await api.start()
            refused = len(api.requests)
            await until(lambda: len(api.requests) > refused + 5, what="refusals")
            assert not laptop.task.done()
            api.forbidden.clear()
            await until(lambda: len(node.cluster.intercepts()) == 1, within=25, what="a new tunnel")
            await until(lambda: laptop.ear.active == 1, what="active again")
            await laptop.end()

    run(test, within=60)


def test_a_killed_cli_ends_at_once_and_its_resource_is_inert_then_deleted(monkeypatch):
    monkeypatch.setattr("sidestep.node.cluster.service.SPREAD", 0.1)

    async def test(api):
        async with daemon(api) as node:
            node.cluster.resources.inert_after, node.cluster.resources.deleted_after = 1.0, 4.0
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1, what="active")
            await laptop.kill()
            await until(lambda: node.cluster.intercepts() == (), within=3, what="gone with its tunnel")
            assert resource(api) is not None
            await until(lambda: status(api).get("state") == "Stale", what="Stale")
            # It conflicts with nothing any more.
            other = Laptop(api, user="bob", headers=())
            await until(lambda: other.ear.active == 1, what="the next one")
            await other.end()
            await until(lambda: resource(api) is None, what="deleted")

    run(test)


def test_a_wiretap_is_a_resource_of_its_own_and_conflicts_with_nothing():
    async def test(api):
        async with daemon(api) as node:
            ada = Laptop(api, headers=())
            await until(lambda: ada.ear.active == 1, what="a global intercept")
            flows = Laptop(api, user="bob", kind="wiretap", heads_only=True)
            await until(lambda: flows.ear.active == 1, what="a wiretap beside it")
            assert api.get(GROUP, "wiretaps", "shop", "orders-1-flows")["spec"]["headsOnly"]
            assert [each.heads_only for each in node.cluster.intercepts()] == [False, True]
            await flows.end()
            await ada.end()
            assert api.get(GROUP, "wiretaps", "shop", "orders-1-flows") is None

    run(test)


def test_somebody_else_ends_it():
    async def test(api):
        async with daemon(api) as node:
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1, what="active")
            await api.remove(GROUP, "intercepts", "shop", "orders-1")
            outcome = await laptop.task
            assert isinstance(outcome.ended, Ended)
            assert "deleted" in outcome.ended.reason
            assert node.cluster.intercepts() == ()

    run(test)


@pytest.mark.parametrize(
    ("verb", "resource_name", "expected"),
    [
        ("create", "intercepts", "you may not create intercepts.sidestep.dev in namespace shop"),
        ("list", "intercepts", "you may not watch intercepts.sidestep.dev in namespace shop"),
        ("watch", "intercepts", "you may not watch intercepts.sidestep.dev in namespace shop"),
        ("get", "pods/portforward", "you may not create pods/portforward in namespace sidestep"),
    ],
)
def test_a_missing_right_is_one_line_that_names_verb_and_resource(verb, resource_name, expected):
    async def test(api):
        api.forbid(verb, resource_name)
        async with daemon(api):
            laptop = Laptop(api)
            try:
                outcome = await laptop.task
                error = outcome.error
            except RefusedError as refused:
                error = refused
            assert expected in str(error)
            assert "kubectl create rolebinding" in str(error)
            assert "--user=eve" in str(error)
            assert "\n" not in str(error)

    run(test)


def test_a_cluster_without_sidestep():
    async def test(api):
        api.unknown.add("intercepts")
        with pytest.raises(RefusedError, match="not installed in this cluster: kubectl apply -f"):
            await Laptop(api).task

    run(test)


def test_a_refusal_of_all_nodes_ends_the_session():
    async def test(api):
        async with daemon(api) as node:
            node.controller.reason = "port 8443 speaks TLS and there is no certificate for it"
            laptop = Laptop(api)
            outcome = await laptop.task
            assert str(outcome.error) == node.controller.reason

    run(test)


# --- who may open a tunnel ----------------------------------------------------------------------------------------


async def knock(api, node, *, certificate=None, uid, key, name="orders-1", plural="intercepts", within=5.0):
    """Try to open a session as somebody; returns the error that the tunnel ended with, None if it did not."""
    entry = status(api, name, plural)["nodes"]["n1"]
    real = base64.b64decode(entry["certificate"])
    client = Api(api.access())
    forward = await PortForward.open(client, namespace="sidestep", pod="x", port=entry["daemon"]["port"])

    async def dial(_opening):
        raise RefusedError("no")

    end = CliEnd(
        dial=dial,
        on_hello=lambda _hello: None,
        on_event=lambda _event: None,
        prove=lambda hello: sign(key, nonce=hello.nonce, certificate=certificate or real, uid=uid),
        intercept=uid,
    )
    try:
        await asyncio.get_running_loop().create_connection(
            lambda: end.connection, sock=forward.socket, ssl=pinned_context(real), server_hostname=""
        )
        async with time_limit(within):
            return await end.run()
    except TimeoutError:
        return None
    finally:
        end.connection.close()
        await end.connection.wait_closed()
        await forward.aclose()
        await client.aclose()
        await asyncio.sleep(0.05)


def test_neither_another_key_nor_another_certificate_nor_another_uid_opens_anything():
    async def test(api):
        async with daemon(api) as node:
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1, what="active")
            uid = resource(api)["metadata"]["uid"]
            mine = node.sessions._sessions[uid]
            thief = generate()
            assert await knock(api, node, uid=uid, key=thief) is not None
            assert await knock(api, node, uid="unknown", key=thief) is not None
            # A signature for another node's certificate, as somebody in between would have it, is none for this one.
            owner = laptop.session._key
            other = make_node_tls().certificate
            assert await knock(api, node, uid=uid, key=owner, certificate=other) is not None
            assert node.sessions._sessions[uid] is mine
            assert laptop.ear.active == 1
            await laptop.end()

    run(test)


KINDS = {
    "intercepts": {},
    "wiretaps": {"kind": "wiretap"},
    "podaccesses": {"kind": "wiretap", "port": "", "headers": (), "allow": ("network", "environment", "files")},
}


@pytest.mark.parametrize(
    ("mine", "theirs"), [("podaccesses", "intercepts"), ("podaccesses", "wiretaps"), ("intercepts", "podaccesses")]
)
def test_the_key_of_a_session_of_any_kind_opens_no_session_of_another(mine, theirs):
    async def test(api):
        async with daemon(api) as node:
            handler = PodAccess() if mine == "podaccesses" else None
            laptop = Laptop(api, handler=handler, name="mine", **KINDS[mine])
            await until(lambda: laptop.ear.active == 1, what="active")
            handler = PodAccess() if theirs == "podaccesses" else None
            thief = Laptop(api, user="eve", handler=handler, name="theirs", **KINDS[theirs])
            await until(lambda: thief.ear.active == 1, what="the other one")
            uid = resource(api, "mine", mine)["metadata"]["uid"]
            served = node.sessions._sessions[uid]
            place = {"name": "mine", "plural": mine}
            assert await knock(api, node, uid=uid, key=thief.session._key, **place) is not None
            assert node.sessions._sessions[uid] is served
            assert laptop.ear.active == 1
            # The key was the reason: with the right one the same attempt takes the session's place.
            await knock(api, node, uid=uid, key=laptop.session._key, within=1.0, **place)
            await until(lambda: node.sessions._sessions.get(uid) is not served, what="the one with the key")
            await laptop.end()
            await thief.end()

    run(test)


def test_a_key_that_is_swapped_in_the_resource_is_not_followed():
    async def test(api):
        async with daemon(api) as node:
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1, what="active")
            from sidestep.tunnel.proof import public_text

            thief = generate()
            found = resource(api)
            found["spec"]["session"]["publicKey"] = public_text(thief)
            found["spec"]["filter"] = {}
            await api.put(GROUP, "intercepts", found)
            uid = found["metadata"]["uid"]
            await until(lambda: "not followed" in status(api).get("message", ""), what="the message")
            assert await knock(api, node, uid=uid, key=thief) is not None
            assert not node.cluster.intercepts()[0].filter.is_global
            await laptop.end()

    run(test)


def test_a_certificate_that_is_not_the_pinned_one_is_not_spoken_to():
    async def test(api):
        async with daemon(api):
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1, what="active")
            # The status names this daemon; the port-forward leads to somebody else.
            other = make_node_tls()

            async def serve(_reader, writer):
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=other.context)
            port = status(api)["nodes"]["n1"]["daemon"]["port"]
            api.forwards["sidestep-n1", port] = ("127.0.0.1", server.sockets[0].getsockname()[1])
            api.cut()
            await until(
                lambda: any("no tunnel to node n1" in str(each) for each in laptop.ear.events),
                what="the refusal to be told",
            )
            assert laptop.ear.active == 0
            api.forwards.clear()
            await until(lambda: laptop.ear.active == 1, what="the real one again")
            server.close()
            await laptop.end()

    run(test)


@pytest.mark.parametrize(
    "changes",
    [{"namespace": "shop"}, {"namespace": "kube-system"}, {"pod": "../secrets"}, {"pod": ""}, {"port": 0}],
    ids=lambda changes: next(iter(changes.items()))[1] or "empty",
)
def test_a_status_cannot_send_a_developer_to_any_pod(changes):
    """Whoever may write a status has the command line knock at a daemon's pod only."""

    async def test(api):
        laptop = Laptop(api)
        await until(lambda: resource(api) is not None, what="the resource")
        found = resource(api)
        certificate = base64.b64encode(make_node_tls().certificate).decode()
        daemon = {"namespace": "sidestep", "pod": "sidestep-n1", "port": 7443, "started": "1", **changes}
        found["status"] = {"nodes": {"n1": {"daemon": daemon, "certificate": certificate}}}
        await api.put(GROUP, "intercepts", found)
        told = "status names"
        await until(lambda: any(told in str(each) for each in laptop.ear.events), what="the refusal to be told")
        assert not [each for each in api.requests if "portforward" in each]
        await laptop.end()

    run(test)


def test_probes_and_metrics():
    async def test(api):
        async with daemon(api) as node:

            async def ask(path):
                reader, writer = await asyncio.open_connection("127.0.0.1", node.cluster.health.port)
                writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                answer = await reader.read()
                writer.close()
                return answer.decode()

            assert (await ask("/healthz")).startswith("HTTP/1.1 200")
            assert (await ask("/readyz")).startswith("HTTP/1.1 503")
            assert (await ask("/metrics")).startswith("HTTP/1.1 200")
            assert (await ask("/")).startswith("HTTP/1.1 404")

    run(test)
