"""A pod that holds more connections than its table has entries, with a real proxy: those beyond go out directly, or are
refused where a policy fails closed."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

import pytest

from sidestep.model.inspection import Action, Match, Rule
from sidestep.steering.egress import EgressSteering
from tests.harness.cgroups import inside
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.privileged.node.outward import TLS, outbound, policy, succeeded, was_reset

pytestmark = pytest.mark.privileged

ENTRIES, HELD = 8, 24
NO_PASTE = Rule("no-paste", Action.BLOCK, match=Match(server_names=("paste.test",)))
HOLDER = """
import signal, socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[3])
held, refused = [], 0
for _ in range(int(sys.argv[4])):
    try:
        raw = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
    except PermissionError:
        refused += 1
    else:
        held.append(context.wrap_socket(raw, server_hostname="api.test"))
print("held", len(held), "refused", refused, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("fail", [False, True])
def test_more_connections_than_there_are_entries(program, tmp_path, monkeypatch, fail):
    monkeypatch.setattr(EgressSteering, "attach", partial(EgressSteering.attach, entries=ENTRIES))

    async def go():
        async with outbound(program, tmp_path, policy(NO_PASTE, fail=fail)) as pod:
            words = [sys.executable, "-c", HOLDER, pod.space.client_ip, str(TLS), str(pod.authority), str(HELD)]
            holder = inside(pod.folder, pod.space.pod.enter(words))
            with Process(holder, log=tmp_path / "holder.log") as process:
                await asyncio.to_thread(until, lambda: "held" in process.text(), within=30, what=process.text)
                said = process.text().split()
                held, refused = int(said[said.index("held") + 1]), int(said[said.index("refused") + 1])
                verdicts = pod.target.egress.verdicts()
                assert held + refused == HELD
                assert verdicts["steered"] + verdicts["full"] >= HELD
                assert 0 < verdicts["steered"] <= ENTRIES
                assert pod.target.egress.open_connections <= ENTRIES
                assert refused == (verdicts["closed"] if fail else 0)
                assert (refused > 0) is fail
                done = [await pod.asked("paste.test") for _ in range(ENTRIES)]
                if fail:
                    assert all(each.returncode in (7, 35, 56) for each in done), done
                else:
                    assert any(each.returncode == 0 and succeeded(each, pod.space.client_ip) for each in done)
            await pod.some.until(lambda: pod.target.egress.open_connections == 0)
            assert was_reset(await pod.asked("paste.test"))
            assert succeeded(await pod.asked("api.test"), pod.space.client_ip)

    asyncio.run(go())
