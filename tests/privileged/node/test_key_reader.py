"""The reader and its one-shot children, as real processes: what they are, what they may, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import KernelError
from sidestep.node.certificates.reader import Reader, ReadError
from sidestep.node.certificates.requests import ApiServer, ClusterSecret, Folder, ManifestSecret, ReadRequest
from sidestep.node.proxy_uids import READER
from tests.harness import manifests, memory
from tests.harness.authority import Authority
from tests.harness.hanging import hanging
from tests.harness.processes import Process, alive, children
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged

AUTHORITY = Authority()
LEAF = AUTHORITY.issue("orders.shop")


def using(work, **settings):
    """Run `work` with a reader that is closed afterwards, and see that nothing of it is left."""

    async def main():
        reader = Reader(**settings)
        try:
            return await work(reader)
        finally:
            reader.close()

    before = children(os.getpid())
    descriptors = len(os.listdir("/proc/self/fd"))
    try:
        return asyncio.run(main())
    finally:
        assert children(os.getpid()) == before
        assert len(os.listdir("/proc/self/fd")) == descriptors


def folder(root, name="tls"):
    return Folder(((str(root), None),), f"/{name}")


async def delivered(reader, source, name):
    _, fd = await reader.read(ReadRequest(source, ca_alone=False, deliver=name))
    try:
        return os.pread(fd, 1 << 20, 0), os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def described(pid):
    """What proc(5) says about a process: its status by field, its limits as text."""
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    return status, (proc / "limits").read_text()


def test_a_folder_is_judged_and_its_key_delivered_as_a_sealed_memfd(tmp_path):
    LEAF.write(tmp_path / "tls")

    async def work(reader):
        source = folder(tmp_path)
        summary, fd = await reader.read(ReadRequest(source, ca_alone=False))
        assert fd is None
        assert summary.identity.names == ("orders.shop",)
        assert summary.problems == ()
        text, link = await delivered(reader, source, summary.identity.name)
        assert text == LEAF.key + LEAF.chain
        assert link.startswith("/memfd:")
        assert (await delivered(reader, source, summary.trust.name))[0] == LEAF.ca
        with pytest.raises(ReadError, match="changed while"):
            await reader.read(ReadRequest(source, ca_alone=False, deliver="identity:other"))
        assert await reader.stamp(source) == await reader.stamp(source)

    using(work)


def test_a_secret_among_manifests_is_read(tmp_path):
    import yaml

    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(manifests.secret("orders-tls", LEAF.secret())))

    async def work(reader):
        source = ManifestSecret(str(path), "shop", "orders-tls")
        summary, _ = await reader.read(ReadRequest(source, ca_alone=False))
        assert (await delivered(reader, source, summary.identity.name))[0] == LEAF.key + LEAF.chain
        with pytest.raises(ReadError, match="there is no Secret shop/other"):
            await reader.read(ReadRequest(ManifestSecret(str(path), "shop", "other"), ca_alone=False))

    using(work, manifests=True)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda tls: (tls / "tls.crt").unlink(), "neither tls.crt nor cert-chain.pem"),
        (lambda tls: (tls / "tls.key").unlink(), "holds tls.crt but no tls.key"),
        (lambda tls: ((tls / "tls.crt").unlink(), os.mkfifo(tls / "tls.crt")), "is not a regular file"),
        (lambda tls: (tls / "tls.crt").write_bytes(b"x" * (1 << 20) + b"x"), "is larger than 1048576 bytes"),
        (lambda tls: (tls / "tls.crt").write_bytes(b"x" * (1 << 20)), "tls.crt: is larger than 524288 bytes"),
        (lambda tls: (tls / "tls.key").write_bytes(Authority().issue("x").key), "tls.key: block 1"),
        (lambda tls: (tls / "ca.crt").write_bytes(LEAF.ca * 1500), "ca.crt: holds more than 1024 blocks"),
    ],
)
def test_what_is_wrong_is_a_reason_within_a_moment(tmp_path, spoil, reason):
    spoil(LEAF.write(tmp_path / "tls"))

    async def work(reader):
        try:
            summary, _ = await reader.read(ReadRequest(folder(tmp_path), ca_alone=False))
        except ReadError as error:
            return str(error)
        return "; ".join(summary.problems)

    assert reason in using(work)


def test_a_child_is_nobody_when_it_meets_what_strangers_wrote(tmp_path):
    """Seen while the API server keeps it waiting: no rights, limits set; it ends with whoever waits for it."""

    async def work(reader):
        asked, over = asyncio.Event(), []

        async def never(_read, write):
            asked.set()
            over.append(write)
            await asyncio.Event().wait()

        server = await asyncio.start_server(never, "127.0.0.1", 0)
        async with server:
            at = ApiServer("127.0.0.1", server.sockets[0].getsockname()[1])
            reading = asyncio.ensure_future(reader.read(ReadRequest(ClusterSecret("shop", "tls", at), ca_alone=False)))
            async with time_limit(20):
                await asked.wait()
            (child,) = children(reader.pid)
            status, limits = described(child)
            descriptors = os.listdir(f"/proc/{child}/fd")
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await asyncio.to_thread(until, lambda: not alive(child), within=5, what="the child to end")
            over[0].transport.abort()
        assert status["Uid"].split() == [str(READER)] * 4
        assert status["Groups"].strip() == ""
        assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
        assert any(line.split()[:5] == ["Max", "cpu", "time", "2", "2"] for line in limits.splitlines())
        assert any(line.split()[:4] == ["Max", "processes", "0", "0"] for line in limits.splitlines())
        assert len(descriptors) == 5  # stdio, the answer's socket, the API server's

    using(work)


def test_a_reader_that_hangs_is_killed_and_others_are_read(tmp_path):
    LEAF.write(tmp_path / "tls")
    LEAF.write(tmp_path / "other")

    async def work(reader):
        await reader.stamp(folder(tmp_path))
        first = reader.pid
        os.kill(first, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(KernelError, match="timed out"):
            await reader.stamp(folder(tmp_path))
        assert time.monotonic() - began < 10
        with pytest.raises(ReadError, match="took too long before"):
            await reader.stamp(folder(tmp_path))
        assert await reader.stamp(folder(tmp_path, "other"))
        assert reader.pid != first
        await asyncio.to_thread(until, lambda: not alive(first), within=5, what="the first reader to end")

    using(work, look_deadline=0.3, penalty=600)


def test_every_folder_that_hangs_costs_one_deadline(tmp_path):
    """The time that a new reader has to start is not given to the look that it is started for."""
    LEAF.write(tmp_path / "tls")

    async def work(reader):
        await reader.stamp(folder(tmp_path))
        began = time.monotonic()
        for number in range(4):
            with pytest.raises(KernelError, match="timed out"):
                await reader.stamp(folder(tmp_path, f"hangs/{number}"))
        assert time.monotonic() - began < 20
        assert await reader.stamp(folder(tmp_path))

    with hanging(tmp_path / "hangs"):
        using(work, look_deadline=0.3)


def test_a_path_that_is_no_text_is_a_reason(tmp_path):
    """YAML can spell a surrogate; UTF-8 cannot."""

    async def work(reader):
        for asking in (
            reader.stamp(folder(tmp_path, "\ud800")),
            reader.read(ReadRequest(folder(tmp_path, "\ud800"), ca_alone=False)),
        ):
            with pytest.raises(ReadError, match="is no text"):
                await asking

    using(work)


def test_a_killed_reader_is_replaced(tmp_path):
    LEAF.write(tmp_path / "tls")

    async def work(reader):
        for _ in range(3):
            summary, _ = await reader.read(ReadRequest(folder(tmp_path), ca_alone=False))
            assert summary.identity
            os.kill(reader.pid, signal.SIGKILL)

    using(work)


def test_many_are_read_at_once(tmp_path):
    for number in range(12):
        AUTHORITY.issue(f"n{number}.shop").write(tmp_path / f"f{number}")

    async def work(reader):
        return await asyncio.gather(
            *(reader.read(ReadRequest(folder(tmp_path, f"f{number}"), ca_alone=False)) for number in range(12))
        )

    assert [summary.identity.dns_name for summary, _ in using(work)] == [f"n{number}.shop" for number in range(12)]


def test_a_reader_that_has_read_keys_holds_none(tmp_path):
    rsa = AUTHORITY.issue("rsa.shop", kind="rsa")
    LEAF.write(tmp_path / "tls")
    rsa.write(tmp_path / "rsa")

    async def work(reader):
        for name in ("tls", "rsa"):
            source = folder(tmp_path, name)
            summary, _ = await reader.read(ReadRequest(source, ca_alone=False))
            _, fd = await reader.read(ReadRequest(source, ca_alone=False, deliver=summary.identity.name))
            os.close(fd)
        return {key: memory.search(reader.pid, memory.forms(issued.key)) for key, issued in issues.items()}

    issues = {"ecdsa": LEAF, "rsa": rsa}
    assert using(work) == {"ecdsa": set(), "rsa": set()}


def test_it_dies_with_the_daemon_even_when_it_hangs(tmp_path):
    LEAF.write(tmp_path / "tls")
    script = (
        "import asyncio, os, signal, sys\n"
        "from sidestep.node.certificates.reader import Reader\n"
        "from sidestep.node.certificates.requests import Folder\n"
        "reader = Reader()\n"
        "asyncio.run(reader.stamp(Folder(((sys.argv[1], None),), '/tls')))\n"
        "os.kill(reader.pid, signal.SIGSTOP)\n"
        "print(reader.pid, flush=True)\n"
        "signal.pause()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with Process(command, log=tmp_path / "log", stdout=tmp_path / "out") as daemon:
        until(lambda: daemon.output().endswith("\n") or not daemon.running, within=20, what="the reader")
        helper = int(daemon.output())
        assert alive(helper)
        daemon.kill()
        until(lambda: not alive(helper), within=5, what="the reader to die")


def test_a_child_that_hangs_while_it_opens_dies_with_the_daemon(tmp_path):
    script = (
        "import asyncio, sys\n"
        "from sidestep.node.certificates.reader import Reader\n"
        "from sidestep.node.certificates.requests import Folder, ReadRequest\n"
        "reader = Reader(on_start=lambda pid: print(pid, flush=True))\n"
        "asyncio.run(reader.read(ReadRequest(Folder(((sys.argv[1], None),), '/hangs'), ca_alone=False)))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with (
        hanging(tmp_path / "hangs"),
        Process(command, log=tmp_path / "log", stdout=tmp_path / "out") as daemon,
    ):
        until(lambda: daemon.output().endswith("\n") or not daemon.running, within=20, what="the reader")
        reader = int(daemon.output())
        until(lambda: children(reader), within=20, what="the child")
        [child] = children(reader)
        daemon.kill()
        try:
            until(lambda: not alive(reader) and not alive(child), within=5, what="reader and child to die")
        finally:
            if alive(child):
                os.kill(child, signal.SIGKILL)


def test_a_source_that_costs_its_child_is_refused_for_a_while():
    """Whatever ends a child - its limit of processor time, of memory - ends it without a word."""

    async def work(reader):
        asked, over = asyncio.Event(), []

        async def never(_read, write):
            over.append(write)
            asked.set()
            await asyncio.Event().wait()

        async with await asyncio.start_server(never, "127.0.0.1", 0) as server:
            at = ApiServer("127.0.0.1", server.sockets[0].getsockname()[1])
            request = ReadRequest(ClusterSecret("shop", "tls", at), ca_alone=False)
            reading = asyncio.ensure_future(reader.read(request))
            async with time_limit(20):
                await asked.wait()
            os.kill(children(reader.pid)[0], signal.SIGXCPU)
            with pytest.raises(ReadError, match="more than 2 s of processor time"):
                await reading
            with pytest.raises(ReadError, match="took too long before"):
                await reader.read(request)
            for each in over:
                each.transport.abort()

    using(work)
