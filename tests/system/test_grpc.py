"""gRPC with grpcio on all sides: every kind of call, diverted and not, by turns on one connection."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest

from tests.harness import scene
from tests.harness.inspection import policies, policy, view
from tests.harness.processes import Process
from tests.harness.waiting import until

DEV = [["x-dev", "ada"]]
TRANSPORTS = [pytest.param(scene.TLS_PORT, id="tls"), pytest.param(scene.PLAIN_PORT, id="plain")]
PEER = [sys.executable, "-m", "tests.harness.grpc_peer"]


@contextlib.contextmanager
def grpc_server(folder, name, address, *, netns=None, tls=None):
    """A running gRPC server; `port` is where."""
    label = f"grpc-{name}-{'tls' if tls else 'plain'}"
    command = [*PEER, "serve", name, address, *(["--tls", str(tls)] if tls else [])]
    command = netns.enter(command) if netns else command
    with Process(command, log=folder / f"{label}.log", stdout=folder / f"{label}.out") as process:
        until(lambda: process.output() or not process.running, within=20, what=lambda: f"gRPC\n{process.text()}")
        assert process.running, process.text()
        process.port = int(process.output().split()[0])
        yield process


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """gRPC servers as the app, with TLS and without, and as handlers."""
    folder = tmp_path_factory.mktemp("grpc")
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(scene.shop(folder))
        tls = folder / "tls"
        shop.app_certificate.write(tls)
        space = shop.space
        for port in (scene.TLS_PORT, scene.PLAIN_PORT):
            keys = tls if port == scene.TLS_PORT else None
            stack.enter_context(grpc_server(folder, "app", f"{space.ip}:{port}", netns=space.pod, tls=keys))
        shop.grpc = {
            scene.TLS_PORT: stack.enter_context(grpc_server(folder, "handler", "127.0.0.1:0", tls=tls)),
            scene.PLAIN_PORT: stack.enter_context(grpc_server(folder, "handler", "127.0.0.1:0")),
        }
        yield shop


@contextlib.contextmanager
def intercepting(shop, port, *options):
    with shop.intercept(
        *options, port=port, handler_port=shop.grpc[port].port, plaintext=port == scene.PLAIN_PORT
    ) as running:
        yield running


def call(shop, port, *calls, ping=0):
    """Make calls on one connection from the client's namespace."""
    words = ["call", f"{shop.space.ip}:{port}", *(["--ca", str(shop.ca)] if port == scene.TLS_PORT else [])]
    words += ["--ping", str(ping)]
    done = subprocess.run(
        shop.space.client.enter([*PEER, *words]),
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "too_many_pings" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.kernels
@pytest.mark.parametrize("port", TRANSPORTS)
def test_every_kind_by_turns_on_one_connection(wide, port):
    kinds = [
        ({"method": "Get", "messages": ["7"]}, ["{} 7"]),
        ({"method": "Collect", "messages": ["a", "b", "c"]}, ["{} a+b+c"]),
        ({"method": "List", "messages": ["3"]}, ["{} 0", "{} 1", "{} 2"]),
        ({"method": "Chat", "messages": ["a", "b"]}, ["{} a", "{} b"]),
        ({"method": "Get", "messages": ["x" * 2_000_000]}, None),
    ]
    calls = [{**call, **more} for call, _ in kinds for more in ({}, {"metadata": DEV}, {})]
    with intercepting(wide, port) as running:
        results = call(wide, port, *calls)
        until(lambda: len(running.of("request")) == len(kinds), within=5, what="a line for each diverted call")
    for number, result in enumerate(results):
        side = "handler" if number % 3 == 1 else "app"
        wanted = kinds[number // 3][1]
        assert result["code"] == "OK", result
        if wanted is None:
            assert result["sizes"] == [len(side) + 2_000_001]
        else:
            assert result["answers"] == [text.format(side) for text in wanted]
        if calls[number]["method"] == "Get":
            assert result["trailing"]["x-served-by"] == side
            assert result["trailing"]["x-bin-bin"] == str(b"\x00\xff")


@pytest.mark.parametrize("port", TRANSPORTS)
@pytest.mark.parametrize("side", ["app", "handler"])
def test_errors_and_deadlines(wide, port, side):
    more = {"metadata": DEV} if side == "handler" else {}
    with intercepting(wide, port):
        failed, slow, after = call(
            wide, port, {"method": "Fail", **more}, {"method": "Slow", "timeout": 1, **more}, {"method": "Get", **more}
        )
    assert (failed["code"], failed["details"]) == ("NOT_FOUND", f"{side}: no such order: ä")
    assert slow["code"] == "DEADLINE_EXCEEDED"
    assert slow["seconds"] < 5
    assert after["answers"] == [f"{side} 1"]
    if side == "handler":  # it saw the deadline, and the end of the call
        until(lambda: "slow call over" in wide.grpc[port].output(), within=5, what="the handler to be told")
        assert "deadline in 1.0" in wide.grpc[port].output() or "deadline in 0.9" in wide.grpc[port].output()


def test_a_handler_without_http2_is_named(wide):
    with wide.intercept("--name", "mine", "--http-header", "x-dev=ada"):  # the harness's handler: HTTP/1.1 only
        diverted, other = call(wide, scene.TLS_PORT, {"method": "Get", "metadata": DEV}, {"method": "Get"})
    assert diverted["code"] == "UNIMPLEMENTED"
    assert diverted["details"].startswith("sidestep: intercept shop/mine: ")
    assert "HTTP/2" in diverted["details"]
    assert other["answers"] == ["app 1"]


def test_without_a_handler_the_app_answers(wide):
    with wide.intercept(handler_port=1):
        (result,) = call(wide, scene.TLS_PORT, {"method": "Chat", "messages": ["a", "b"], "metadata": DEV})
    assert result["answers"] == ["app a", "app b"]


def test_the_client_s_pings_do_not_annoy_an_app_that_sees_no_calls(wide):
    port = scene.TLS_PORT
    with intercepting(wide, port) as running:
        slow = {"method": "Slow", "metadata": DEV, "timeout": 5}
        get = {"method": "Get", "metadata": DEV, "messages": ["x" * 200_000]}
        results = call(wide, port, slow, *[get] * 8, slow, {"method": "Get"}, ping=300)
        until(lambda: len(running.of("request")) == 10, within=5, what="a line for each diverted call")
    codes = [each["code"] for each in results]
    assert codes == ["DEADLINE_EXCEEDED", *["OK"] * 8, "DEADLINE_EXCEEDED", "OK"], results


@pytest.mark.parametrize("port", TRANSPORTS)
def test_a_policy_refuses_calls_with_a_status_that_names_it(wide, port):
    match = {"paths": [{"match": "Equal", "value": "/shop.Orders/Get"}]}
    rules = [
        {"name": "no-get", "match": match, "action": "Block"},
        {"name": "secret", "patterns": [{"regex": "top-secret"}], "action": "Block"},
    ]
    calls = [
        {"method": "Get", "messages": ["1"]},
        {"method": "Collect", "messages": ["a", "b"]},
        {"method": "Collect", "messages": ["a", "top-secret"]},
        {"method": "List", "messages": ["2"]},
        {"method": "Get", "messages": ["2"], "metadata": DEV},
    ]
    with policies(wide, policy(*rules)):
        results = call(wide, port, *calls)
        codes = [each["code"] for each in results]
        assert codes == ["PERMISSION_DENIED", "OK", "PERMISSION_DENIED", "OK", "PERMISSION_DENIED"], results
        assert results[0]["details"].startswith("sidestep: policy shop/orders, id ")
        assert (results[1]["answers"], results[3]["answers"]) == (["app a+b"], ["app 0", "app 1"])
        until(lambda: view(wide)["hits"].get("blocked", 0) >= 3, within=5, what="the hits to be counted")
    assert call(wide, port, calls[0])[0]["code"] == "OK"


@pytest.mark.parametrize("port", TRANSPORTS)
@pytest.mark.parametrize("compressed", [False, True])
def test_the_messages_of_a_call_that_goes_on_are_judged_one_by_one(wide, port, compressed):
    """A chat whose client waits for each answer: nothing is held until the call is over."""
    secret = {"name": "no-secret", "patterns": [{"regex": "top-secret"}], "action": "Block"}
    chat = {"method": "Chat", "in_turn": True, "compressed": compressed}
    long = "x" * 300
    with policies(wide, policy(secret, failurePolicy="Fail")):
        clean, blocked = call(
            wide,
            port,
            {**chat, "messages": ["a", long, "b"]},
            {**chat, "messages": ["a", f"{long} top-secret {long}", "b"]},
        )
    assert (clean["code"], clean["sizes"]) == ("OK", [5, 304, 5]), clean
    assert clean["seconds"] < 10, clean
    assert (blocked["code"], blocked["answers"]) == ("CANCELLED", ["app a"]), blocked
