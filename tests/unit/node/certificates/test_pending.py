"""Certificates by path whose container does not run yet, or runs again: pending, usable and unusable ones."""

import asyncio

import msgspec
import pytest
from msgspec.structs import replace

from sidestep.model.errors import ConfigurationError, KernelError
from sidestep.model.inventory import Inventory
from sidestep.model.pod import Location
from sidestep.node.certificates import store as module
from sidestep.node.certificates.reader import ReadError
from sidestep.node.certificates.requests import Absence
from sidestep.node.certificates.store import LACKING, STARTING, TICKS, CertificateStore
from sidestep.policy.survey import survey
from tests.harness.authority import Authority
from tests.unit.node.certificates.test_store import BY_PATH, DOWN, POD, Node, polling, run, until
from tests.unit.node.scenes import HTTPS, PLAIN, pod

LONG_AGO = 1000.0
"""Seconds since boot at which the containers of most tests were started."""


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.005)


class Reader:
    """The folders of `test_store.Node`, for roots that may be absent."""

    def __init__(self, inner):
        self._inner = inner
        self.gone = set()

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def stamp(self, source):
        return f"{await self._inner.stamp(source)}{sorted(self.gone)}"

    async def read(self, request):
        there = tuple(each for each in request.source.roots if each[0] not in self.gone)
        try:
            return await self._inner.read(replace_roots(request, there))
        except KernelError:
            raise
        except ReadError as error:
            absent = Absence.FOLDER if "neither" in str(error) else Absence.NOTHING
            if absent and len(there) < len(request.source.roots):
                raise ReadError("opening it: no such process", absent=Absence.ROOT) from error
            raise ReadError(str(error), absent=absent) from error


def replace_roots(request, roots):
    return msgspec.structs.replace(request, source=msgspec.structs.replace(request.source, roots=roots))


class Scene(Node):
    """A pod in a cluster: its containers come and go."""

    def __init__(self, *containers):
        ports = (HTTPS, PLAIN) if containers == ("app",) else (replace(HTTPS, container=""), PLAIN)
        super().__init__(replace(pod(annotations=dict(BY_PATH), ports=ports), containers=containers))
        self.now = LONG_AGO + 500.0
        self.reader = Reader(self.folder)
        self.store = CertificateStore(
            reader=self.reader,
            secrets=self.secrets,
            conditions=self.conditions,
            on_change=self.changed,
            uptime=lambda: self.now,
        )
        self.runs()

    def runs(self, *, started=LONG_AGO, **pids):
        """These containers run from now on, and no others."""
        births = {pid: int(started * TICKS) for pid in pids.values()}
        location = Location(netns="/proc/1/ns/net", pids=pids, births=births, searched=True)
        self.pod = replace(self.pod, location=location)

    @property
    def entry(self):
        return self.store.entry(DOWN)

    def put(self, issued, pid):
        self.folder.put(issued, root=f"/proc/{pid}/root")

    def ask_nothing(self):
        self.store.want((), {POD: self.pod})


def test_it_is_pending_until_the_container_has_a_process(authority):
    async def story():
        some = Scene("app")
        await some.want()
        assert some.facts.pending == "container app has no process yet"
        assert (some.facts.identity, some.facts.problem) == ("", "")
        assert some.problems == []
        some.put(authority.issue("orders.shop"), 7)
        some.runs(app=7)
        await some.want()
        assert some.facts.identity
        assert (some.facts.pending, some.problems) == ("", [])

    run(story())


def test_what_has_no_process_costs_nothing(monkeypatch):
    async def story():
        some = Scene("app")
        await some.want()
        turns = 0
        original = some.store._due

        async def due(entry):
            nonlocal turns
            turns += 1
            return await original(entry)

        some.store._due = due
        changes = some.changes
        async with polling(some, monkeypatch):
            await until(lambda: turns > 20)
        for _ in range(5):
            await some.want()  # plans that are made for other reasons
        assert (some.folder.looks, some.folder.reads, some.changes) == (0, 0, changes)
        assert not some.store._all.starting

    run(story())


def test_the_last_good_certificate_stays_while_the_container_is_between_two_runs(authority):
    async def story():
        some = Scene("app")
        some.put(authority.issue("orders.shop"), 7)
        some.runs(app=7)
        await some.want()
        good, changes = some.facts, some.changes
        some.runs()
        await some.want()
        assert some.facts == good
        assert some.entry.pending == "container app has no process yet"
        assert (some.problems, some.changes) == ([], changes)
        some.put(authority.issue("orders.shop"), 8)
        some.runs(app=8)
        await some.want()
        assert some.facts.identity not in ("", good.identity)
        assert some.entry.pending == ""

    run(story())


def test_another_process_of_the_same_container_is_read_at_once(authority):
    async def story():
        some = Scene("app")
        some.put(authority.issue("orders.shop"), 7)
        some.runs(app=7)
        await some.want()
        reads = some.folder.reads
        await some.want()
        assert some.folder.reads == reads
        some.put(authority.issue("orders.shop"), 8)
        some.runs(app=8)
        await some.want()
        assert some.folder.reads == reads + 1

    run(story())


def test_a_process_that_ended_before_it_was_read_is_waited_for(authority):
    async def story():
        some = Scene("app")
        some.reader.gone.add("/proc/7/root")
        some.runs(app=7)
        await some.want()
        assert "no such process" in some.facts.pending
        assert some.problems == []
        some.put(authority.issue("orders.shop"), 8)
        some.runs(app=8)
        await some.want()
        assert some.facts.identity

    run(story())


def test_a_folder_that_a_young_container_has_not_written_yet_is_waited_for(authority):
    async def story():
        some = Scene("app")
        some.runs(app=7, started=some.now - 1)
        await some.want()
        assert "neither tls.crt nor cert-chain.pem" in some.facts.pending
        assert some.problems == []
        some.put(authority.issue("orders.shop"), 7)
        await until(lambda: some.facts.identity)
        assert some.problems == []
        await until(lambda: not some.store._all.starting)

    run(story())


def test_half_a_certificate_of_a_young_container_is_waited_for(authority):
    async def story():
        some = Scene("app")
        some.runs(app=7, started=some.now - 1)
        some.put(authority.issue("orders.shop"), 7)
        key = some.folder.files.pop(("/proc/7/root", "/tls/tls.key"))
        await some.want()
        assert "no tls.key" in some.facts.pending
        assert some.problems == []
        some.folder.files["/proc/7/root", "/tls/tls.key"] = key
        await until(lambda: some.facts.identity)

    run(story())


@pytest.mark.parametrize("age", [1.0, STARTING + 1])
def test_a_container_that_runs_for_long_without_the_folder_is_told(age):
    async def story():
        some = Scene("app")
        some.runs(app=7, started=some.now - age)
        await some.want()
        assert bool(some.facts.pending) is (age < STARTING)
        some.now += STARTING
        await until(lambda: some.problems)
        assert some.facts.pending == ""
        assert "neither tls.crt nor cert-chain.pem" in some.facts.problem
        await until(lambda: not some.store._all.starting)

    run(story())


@pytest.mark.parametrize("lack", ["folder", "process", "key"])
def test_a_container_that_crashes_again_and_again_without_it_is_told_once_a_minute_has_passed(authority, lack):
    """Each of its starts alone is too short to be judged."""

    async def story():
        some = Scene("app")
        issued, told = authority.issue("orders.shop"), set()
        began = some.now
        for pid in range(7, 20):
            if lack == "process":
                some.reader.gone.add(f"/proc/{pid}/root")
            elif lack == "key":
                some.put(issued, pid)
                del some.folder.files[f"/proc/{pid}/root", "/tls/tls.key"]
            some.runs(app=pid, started=some.now - 1)
            await some.want()
            assert bool(some.problems) is (some.now - began >= LACKING)
            some.now += 3
            some.runs()
            await some.want()
            assert bool(some.problems) is (some.now - began >= LACKING)
            some.now += 7
            told |= set(some.problems)
        assert len(told) == 1
        text = {"folder": "neither tls.crt", "process": "no such process", "key": "no tls.key"}[lack]
        assert text in some.facts.problem
        assert some.facts.pending == ""
        some.put(issued, 30)
        some.runs(app=30, started=some.now - 1)
        await some.want()
        assert (some.problems, some.facts.problem) == ([], "")
        assert some.facts.identity
        # What is missing in a later start has its time again.
        some.now += 1000
        some.runs(app=31, started=some.now - 1)
        await some.want()
        assert some.problems == []

    run(story())


def test_a_pod_whose_container_never_runs_stays_pending_however_long():
    async def story():
        some = Scene("app", "side")
        for _ in range(10):
            some.runs(side=7, started=some.now - 1)
            await some.want()
            some.runs()
            await some.want()
            some.now += LACKING
        assert some.facts.pending
        assert some.problems == []

    run(story())


def test_a_young_container_is_looked_at_for_a_while_only(monkeypatch):
    monkeypatch.setattr(module, "STARTING", 0.05)

    async def story():
        some = Scene("app", "side")
        some.runs(app=7, started=some.now - 1)
        await some.want()
        await until(lambda: not some.store._all.starting)
        assert 1 < some.folder.looks <= 0.05 / 0.005 + 3
        assert some.facts.pending
        assert some.folder.reads == 1

    run(story())


def test_the_first_container_in_order_that_has_the_folder_is_used_whenever_it_starts(authority):
    async def story():
        some = Scene("app", "side")
        some.runs(app=7)
        await some.want()
        # One of them runs for long and has none: the other may have it.
        assert some.facts.pending
        assert some.problems == []
        some.put(authority.issue("side.shop"), 8)
        some.runs(app=7, side=8)
        await some.want()
        assert some.facts.dns_name == "side.shop"
        some.put(authority.issue("app.shop"), 9)
        some.runs(app=9, side=8)
        await some.want()
        assert some.facts.dns_name == "app.shop"
        some.runs(side=8)
        await some.want()
        assert some.facts.dns_name == "side.shop"
        assert some.problems == []

    run(story())


def test_all_containers_run_and_none_has_it():
    async def story():
        some = Scene("app", "side")
        some.runs(app=7, side=8)
        await some.want()
        assert "neither tls.crt nor cert-chain.pem" in some.problems[0]

    run(story())


def test_what_was_wrong_stays_said_between_two_runs(authority):
    async def story():
        some = Scene("app")
        some.put(authority.issue("orders.shop"), 7)
        some.folder.files["/proc/7/root", "/tls/tls.key"] = b"junk"
        some.runs(app=7)
        await some.want()
        told, changes = some.problems, some.changes
        assert told
        some.runs()
        await some.want()
        assert (some.problems, some.changes) == (told, changes)
        assert some.facts.problem
        assert some.facts.pending == ""

    run(story())


def test_a_key_that_a_new_proxy_needs_between_two_runs_makes_it_pending(authority):
    async def story():
        some = Scene("app")
        some.put(authority.issue("orders.shop"), 7)
        some.runs(app=7)
        await some.want()
        name = some.facts.identity
        some.runs()
        await some.want()
        with pytest.raises(ConfigurationError, match="has no process yet"):
            await some.deliver(name)
        await until(lambda: not some.store._all.reading)
        assert some.facts.identity == ""
        assert some.facts.pending == "container app has no process yet"
        assert some.problems == []

    run(story())


def test_what_nobody_wants_any_more_is_not_looked_at():
    async def story():
        some = Scene("app")
        some.runs(app=7, started=some.now - 1)
        await some.want()
        assert some.store._all.starting
        some.ask_nothing()
        assert not some.store._all.starting
        await asyncio.sleep(0)
        looks = some.folder.looks
        assert DOWN not in some.store.facts()
        await some.store.aclose()
        assert some.folder.looks <= looks + 1

    run(story())


def test_the_survey_names_the_containers_that_may_hold_the_folder():
    some = Scene("app", "side")
    [wanted] = survey(some.pod, Inventory(pods={POD: some.pod}), node_annotations={}).certificates()
    assert wanted.containers == ("app", "side")
