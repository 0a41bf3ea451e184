"""Clients of gRPC whose clear HTTP/2 is read and leaves as it came; others are in `test_opened_clients`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, Builtin, Match, Pattern, Rule
from tests.harness.cgroups import inside
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.privileged.node.outward import outbound, policy

pytestmark = pytest.mark.privileged

PORT = 8087
CARD = "4111 1111 1111 1111"
CARDS = Rule("cards", Action.BLOCK, patterns=(Pattern(builtin=Builtin.CARD_NUMBER),))


def test_grpc(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, policy(CARDS, fail=True)) as pod:
            address = f"{pod.space.client_ip}:{PORT}"
            serve = [sys.executable, "-m", "tests.harness.grpc_peer", "serve", "far", address]
            with Process(pod.space.client.enter(serve), log=tmp_path / "grpc.log") as process:
                until(lambda: str(PORT) in process.text(), within=20, what=process.text)
                wishes = [
                    {"method": "Get"},
                    {"method": "Chat", "messages": ["a", "b"]},
                    {"method": "Get", "messages": [CARD]},
                    {"method": "List", "messages": ["2"]},
                ]
                call = [sys.executable, "-m", "tests.harness.grpc_peer", "call", address]
                done = await asyncio.to_thread(
                    subprocess.run,
                    inside(pod.folder, pod.space.pod.enter(call)),
                    input=json.dumps(wishes),
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
                get, chat, card, several = json.loads(done.stdout)
                assert get["answers"] == ["far 1"]
                assert chat["answers"] == ["far a", "far b"]
                assert card["code"] == "PERMISSION_DENIED", card
                assert several["answers"] == ["far 0", "far 1"]
                await pod.counted(outbound=1, inspection_blocked=1, outbound_closed=None)

    asyncio.run(go())


LATE = """
import socket, sys
import h2.config, h2.connection, h2.events
speaks = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
speaks.initiate_connection()
head = [(":method", "POST"), (":path", "/admin"), (":scheme", "http"), (":authority", "api.test")]
speaks.send_headers(1, head, end_stream=True)
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as sock:
    sock.settimeout(float(sys.argv[3]))
    try:
        print("first", len(sock.recv(65536)))
    except TimeoutError:
        print("nothing")
    sock.settimeout(20)
    sock.sendall(speaks.data_to_send())
    while data := sock.recv(65536):
        for event in speaks.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                print(dict(event.headers)[":status"])
                sys.exit()
"""


def test_a_client_that_waits_for_what_its_server_says_at_once(program, tmp_path):
    """grpc says its SETTINGS as soon as it is connected to: that is no reason to leave the client unread."""

    async def go():
        admin = Rule("no-admin", Action.BLOCK, match=Match(Filter(paths=(PathCondition(PathTest.PREFIX, "/admin"),))))
        async with outbound(program, tmp_path, policy(admin, fail=True)) as pod:
            address = f"{pod.space.client_ip}:{PORT}"
            serve = [sys.executable, "-m", "tests.harness.grpc_peer", "serve", "far", address]
            with Process(pod.space.client.enter(serve), log=tmp_path / "grpc.log") as process:
                until(lambda: str(PORT) in process.text(), within=20, what=process.text)
                command = (sys.executable, "-c", LATE, pod.space.client_ip, str(PORT), "1")
                done = await asyncio.to_thread(pod.run, *command)
                assert done.stdout.split() == ["nothing", "403"], done.stdout + done.stderr
                await pod.counted(outbound=1, inspection_blocked=1)

    asyncio.run(go())
