import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from sidestep.config import annotation_names as names
from sidestep.model.condition import ConditionType
from sidestep.model.errors import ConfigurationError, KernelError, SidestepError
from sidestep.model.inventory import Inventory
from sidestep.model.pod import Location, PodKey
from sidestep.netns import AbsentFileError
from sidestep.node import certificates as module
from sidestep.node.certificate_material import SPELLINGS
from sidestep.node.certificates import Certificates
from sidestep.node.conditions import Conditions
from sidestep.node.survey import CertificateKey, Side, survey
from tests.harness.authority import Authority
from tests.unit.node.scenes import pod

POD = PodKey("shop", "orders-1")
DOWN = CertificateKey(POD, 8443, Side.DOWNSTREAM)
UP = CertificateKey(POD, 8443, Side.UPSTREAM)
BY_PATH = {f"{names.DOWNSTREAM_PATH}.8443": "/tls"}
BY_SECRET = {f"{names.DOWNSTREAM_SECRET}.8443": "orders-tls"}


@pytest.fixture(scope="module")
def authority():
    return Authority()


class Folder:
    """Files in memory, by (root, path); a value that is an error is raised."""

    def __init__(self):
        self.files = {}
        self.reads = 0
        self.births = set()

    def put(self, issued, *, root="/root", folder="/tls", spelling=("tls.crt", "tls.key", "ca.crt")):
        for name, content in zip(spelling, (issued.chain, issued.key, issued.ca), strict=True):
            self.files[root, f"{folder}/{name}"] = content

    async def read(self, root, path, *, birth=None):
        self.births.add((root, birth))
        self.reads += 1
        await asyncio.sleep(0)
        content = self.files.get((root, path))
        if content is None:
            raise AbsentFileError("no such file", subject=path)
        if isinstance(content, SidestepError):
            raise content
        return content


class Node:
    """A store with its surroundings."""

    def __init__(self, some):
        self.pod = some
        self.folder = Folder()
        self.secrets = {}
        self.conditions = Conditions()
        self.changes = 0
        self.store = Certificates(
            files=self.folder,
            secret=lambda namespace, name: self.secrets.get((namespace, name)),
            conditions=self.conditions,
            on_change=self.changed,
        )

    def changed(self):
        self.changes += 1

    async def want(self):
        found = survey(self.pod, Inventory(pods={POD: self.pod}), node_annotations={})
        await self.store.want(found.certificates(), {POD: self.pod})

    @property
    def facts(self):
        return self.store.facts()[DOWN]

    @property
    def problems(self):
        assert all(each.type is ConditionType.CERTIFICATE_INVALID for each in self.conditions.all())
        return [each.text for each in self.conditions.all()]


def node(annotations=BY_PATH, **fields):
    location = fields.pop("location", Location(netns="/x", root="/root"))
    return Node(replace(pod(annotations=dict(annotations)), location=location, **fields))


def run(story):
    asyncio.run(story)


@asynccontextmanager
async def polling(some, monkeypatch, in_use=(DOWN,)):
    from sidestep.aio.tasks import Tasks

    monkeypatch.setattr(module, "POLL", 0.005)
    async with Tasks("test") as tasks:
        tasks.start(some.store.poll(lambda: frozenset(in_use)), name="poll")
        yield


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a condition of anything, under a deadline
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_path_is_read_below_the_root(authority, spelling):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"), spelling=spelling)
        await some.want()
        assert some.facts.identity.startswith("identity:")
        assert some.facts.trust.startswith("trust:")
        assert some.facts.dns_name == "orders.shop"
        assert some.problems == []

    run(story())


@pytest.mark.parametrize(
    ("pids", "root", "expected"),
    [
        ({"app": 7}, None, "/proc/7/root"),
        ({"": 8}, None, "/proc/8/root"),
        ({"sidecar": 9, "": 8}, None, "/proc/8/root"),
        ({"app": 7}, "/stated", "/stated"),
    ],
)
def test_the_container_of_the_port_is_read(authority, pids, root, expected):
    async def story():
        births = {7: 70, 8: 80, 9: 90}
        some = node(location=Location(pids=pids, root=root, births=births))
        some.folder.put(authority.issue("orders.shop"), root=expected)
        await some.want()
        assert some.facts.identity
        assert (expected, births.get(int(expected.split("/")[2])) if root is None else None) in some.folder.births

    run(story())


def test_a_secret_is_read(authority):
    async def story():
        some = node(BY_SECRET)
        issued = authority.issue("orders.shop")
        some.secrets["shop", "orders-tls"] = {"tls.crt": issued.chain, "tls.key": issued.key}
        await some.want()
        assert some.facts.identity
        assert some.facts.trust == ""
        rotated = authority.issue("orders.shop")
        some.secrets["shop", "orders-tls"] = {"tls.crt": rotated.chain, "tls.key": rotated.key, "ca.crt": rotated.ca}
        before = some.facts
        await some.want()
        assert some.facts.identity not in {"", before.identity}
        assert some.facts.trust

    run(story())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda files: files.clear(), "neither tls.crt nor cert-chain.pem"),
        (lambda files: files.pop(("/root", "/tls/tls.key")), "tls.crt but no tls.key"),
        (lambda files: files.update({("/root", "/tls/tls.crt"): b"junk"}), "tls.crt: the certificate is not valid PEM"),
        (
            lambda files: files.update({("/root", "/tls/ca.crt"): b"junk"}),
            "ca.crt: the CA certificate is not valid PEM",
        ),
        (
            lambda files: files.update({("/root", "/tls/tls.crt"): KernelError("read", 110, doing="reading")}),
            "cannot be read: read while reading: Connection timed out",
        ),
        (
            lambda files: files.update({("/root", "/tls/tls.key"): ConfigurationError("is not a regular file")}),
            "is not a regular file",
        ),
    ],
)
def test_what_is_wrong_is_one_condition_naming_annotation_value_and_reason(authority, spoil, reason):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        spoil(some.folder.files)
        await some.want()
        (text,) = some.problems
        assert f"annotation {names.DOWNSTREAM_PATH}.8443 '/tls' of pod shop/orders-1: " in text
        assert reason in text
        assert reason in some.facts.problem

    run(story())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "there is no Secret shop/orders-tls"),
        ({}, "neither tls.crt nor cert-chain.pem"),
        ({"tls.crt": b"x"}, "tls.crt but no tls.key"),
    ],
)
def test_what_is_wrong_with_a_secret_is_said(data, reason):
    async def story():
        some = node(BY_SECRET)
        some.secrets["shop", "orders-tls"] = data
        await some.want()
        assert reason in some.problems[0]

    run(story())


def test_no_known_root_is_said():
    async def story():
        some = node(location=Location(netns="/x"))
        await some.want()
        assert "sidestep.dev/root" in some.problems[0]

    run(story())


def test_the_last_good_certificate_stays(authority, monkeypatch):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        await some.want()
        good = some.facts.identity
        some.folder.files["/root", "/tls/tls.key"] = b"junk"
        async with polling(some, monkeypatch):
            await until(lambda: some.problems)
            assert some.facts.identity == good
            some.folder.put(authority.issue("orders.shop"))
            await until(lambda: not some.problems)
            assert some.facts.identity not in {"", good}
            assert some.changes > 0

    run(story())


def test_a_path_that_is_not_in_use_is_read_less_often(authority, monkeypatch):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        await some.want()
        before = some.folder.reads
        async with polling(some, monkeypatch, in_use=()):
            await until(lambda: some.folder.reads > before)
            first = some.facts.identity
            some.folder.put(authority.issue("orders.shop"))
            await until(lambda: some.facts.identity != first)

    run(story())


def test_nothing_is_parsed_while_nothing_changes(authority, monkeypatch):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        await some.want()
        judged = []
        monkeypatch.setattr(module.pem, "judge_identity", lambda **material: judged.append(material))
        before = some.folder.reads
        async with polling(some, monkeypatch):
            await until(lambda: some.folder.reads > before + 20)
        assert judged == []
        assert some.changes == 0

    run(story())


def test_an_expired_certificate_is_refused_at_first_and_used_on_when_it_expires_later(authority, monkeypatch):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop", expired=True))
        await some.want()
        assert some.facts.identity == ""
        assert "expired on" in some.problems[0]
        some.folder.put(authority.issue("orders.shop"))
        async with polling(some, monkeypatch):
            await until(lambda: some.facts.identity)
            held = some.store.held(DOWN)
            past = replace(held.identity, not_after=held.identity.not_after.replace(year=2001))
            some.store._held.by_key[DOWN] = replace(held, identity=past)
            await until(lambda: some.problems)
            assert "is still used" in some.problems[0]
            assert some.facts.identity

    run(story())


def test_a_credential_is_read_again_each_time(authority):
    async def story():
        some = node()
        issued = authority.issue("orders.shop")
        some.folder.put(issued)
        await some.want()
        pem = await some.store.credential(POD, some.facts.identity)()
        assert issued.key.strip() in pem
        assert issued.chain.strip() in pem
        assert pem.index(b"PRIVATE") < pem.index(b"CERTIFICATE")
        assert (await some.store.credential(POD, some.facts.trust)()).strip() == issued.ca.strip()

    run(story())


def test_no_key_is_kept(authority):
    import gc

    async def story():
        some = node()
        issued = authority.issue("orders.shop")
        some.folder.put(issued)
        await some.want()
        await some.store.credential(POD, some.facts.identity)()
        some.folder.files.clear()
        marker = issued.key.splitlines()[1]
        gc.collect()
        reachable, queue = set(), [some.store]
        while queue:
            each = queue.pop()
            if id(each) in reachable or isinstance(each, type):
                continue
            reachable.add(id(each))
            assert not (isinstance(each, bytes) and marker in each)
            if type(each).__module__.startswith(("sidestep", "builtins")):
                queue += gc.get_referents(each)

    run(story())


def test_a_certificate_that_can_no_longer_be_delivered_goes_out_of_use(authority):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        await some.want()
        source = some.store.credential(POD, some.facts.identity)
        some.folder.files["/root", "/tls/tls.key"] = b"junk"
        with pytest.raises(ConfigurationError):
            await source()
        assert some.facts.identity == ""
        assert some.changes == 1
        with pytest.raises(ConfigurationError, match="no longer wanted"):
            await source()

    run(story())


def test_a_certificate_that_changed_meanwhile_is_replaced(authority):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        await some.want()
        before = some.facts.identity
        some.folder.put(authority.issue("orders.shop"))
        with pytest.raises(ConfigurationError, match="changed while"):
            await some.store.credential(POD, before)()
        assert some.facts.identity not in {"", before}
        assert some.problems == []

    run(story())


def test_another_pods_credential_is_not_given(authority):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        await some.want()
        with pytest.raises(ConfigurationError):
            await some.store.credential(PodKey("shop", "other"), some.facts.identity)()

    run(story())


def test_what_nobody_wants_is_forgotten_with_its_conditions(authority):
    async def story():
        some = node()
        await some.want()
        assert some.problems
        await some.store.want((), {})
        assert some.problems == []
        assert some.store.facts() == {}

    run(story())


def test_a_new_pod_of_the_same_name_inherits_nothing(authority):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        await some.want()
        some.folder.files.clear()
        some.pod = replace(some.pod, uid="another")
        await some.want()
        assert some.facts.identity == ""

    run(story())


def test_another_place_inherits_nothing(authority):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        await some.want()
        some.pod = replace(some.pod, annotations={f"{names.DOWNSTREAM_PATH}.8443": "/other"})
        await some.want()
        assert some.facts.identity == ""
        assert "neither tls.crt" in some.problems[0]

    run(story())


def test_an_upstream_source_may_hold_a_ca_alone(authority):
    async def story():
        some = node({f"{names.UPSTREAM_PATH}.8443": "/tls", f"{names.DOWNSTREAM_PATH}.8443": "/own"})
        some.folder.put(authority.issue("orders.shop"), folder="/own")
        some.folder.files["/root", "/tls/ca.crt"] = authority.pem
        await some.want()
        facts = some.store.facts()
        assert facts[UP].identity == ""
        assert facts[UP].trust
        assert some.problems == []

    run(story())
