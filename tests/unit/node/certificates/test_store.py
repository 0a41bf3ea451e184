import asyncio
import os
from contextlib import asynccontextmanager

import msgspec
import pytest
from msgspec.structs import replace

from sidestep.aio.packets import sealed_memfd
from sidestep.aio.time_limit import time_limit
from sidestep.config import annotation_names as names
from sidestep.model.condition import ConditionType
from sidestep.model.errors import ConfigurationError, KernelError, SidestepError
from sidestep.model.inventory import Inventory
from sidestep.model.pod import Location, PodKey
from sidestep.node.certificates import one_shot
from sidestep.node.certificates import store as module
from sidestep.node.certificates.one_shot import SPELLINGS
from sidestep.node.certificates.reader import ReadError
from sidestep.node.certificates.requests import ManifestSecret
from sidestep.node.certificates.store import CertificateStore
from sidestep.node.conditions import Conditions
from sidestep.policy.survey import CertificateKey, Side, survey
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


class Folders:
    """A reader of files in memory, by (root, path), and of Secrets; a value that is an error is raised.

    It judges as the one-shot child does.
    """

    def __init__(self):
        self.files = {}
        self.secrets = {}
        self.looks = self.reads = 0
        self.births = set()
        self.hold = None

    def put(self, issued, *, root="/root", folder="/tls", spelling=("tls.crt", "tls.key", "ca.crt")):
        for name, content in zip(spelling, (issued.chain, issued.key, issued.ca), strict=True):
            self.files[root, f"{folder}/{name}"] = content

    async def stamp(self, source):
        self.looks += 1
        await asyncio.sleep(0)
        return str(hash(frozenset((key, str(value)) for key, value in self.files.items())))

    async def read(self, request):
        self.reads += 1
        self.births.update(getattr(request.source, "roots", ()))
        await asyncio.sleep(0)
        if self.hold is not None:
            await self.hold.wait()
        try:
            if isinstance(request.source, ManifestSecret):
                data = self.secrets.get((request.source.namespace, request.source.name))
                material = one_shot._from_secret(request.source, data)
            else:
                material = self._material(request)
            summary, credentials = one_shot._validate(material, ca_alone=request.ca_alone)
            if not request.deliver:
                return summary, None
            if request.deliver not in credentials:
                raise ConfigurationError("; ".join(summary.problems) or "the certificate changed while")
        except KernelError:
            raise
        except SidestepError as error:
            raise ReadError(str(error)) from error
        return summary, sealed_memfd("test", credentials[request.deliver])

    def _material(self, request):
        for root, _ in request.source.roots:
            for spelling in SPELLINGS:
                found = [self.files.get((root, f"{request.source.folder}/{name}")) for name in spelling]
                for each in found:
                    if isinstance(each, SidestepError):
                        raise each
                chain, key, authority = found
                if chain is not None or (request.ca_alone and authority is not None):
                    return one_shot._Material(chain, key, authority, spelling, "the folder")
        raise ConfigurationError("the folder holds neither tls.crt nor cert-chain.pem")


class Secrets:
    """Where Secrets are."""

    def __init__(self):
        self.versions = {}
        self.gone = False

    def source(self, namespace, name):
        if self.gone:
            raise ConfigurationError(f"there is no Secret {namespace}/{name}")
        return ManifestSecret("/manifests/a.yaml", namespace, name)

    def version(self, namespace, name):
        return self.versions.get((namespace, name), "")

    def explain(self, namespace, name, error):
        return f"explained: {error}"


class Node:
    """A store with its surroundings."""

    def __init__(self, some):
        self.pod = some
        self.folder = Folders()
        self.secrets = Secrets()
        self.conditions = Conditions()
        self.changes = 0
        self.store = CertificateStore(
            reader=self.folder, secrets=self.secrets, conditions=self.conditions, on_change=self.changed
        )

    def changed(self):
        self.changes += 1

    async def want(self):
        self.ask()
        await until(lambda: not self.store._all.reading)

    def ask(self):
        found = survey(self.pod, Inventory(pods={POD: self.pod}), node_annotations={})
        self.store.want(found.certificates(), {POD: self.pod})

    async def deliver(self, name):
        fd = await self.store.credential(POD, name).read()
        try:
            return os.pread(fd, 1 << 20, 0)
        finally:
            os.close(fd)

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
async def polling(some, monkeypatch):
    from sidestep.aio.tasks import Tasks

    monkeypatch.setattr(module, "POLL", 0.005)
    async with Tasks("test") as tasks:
        tasks.start(some.store.poll(), name="poll")
        yield


async def until(condition):
    async with time_limit(5):
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
        some.folder.secrets["shop", "orders-tls"] = {"tls.crt": issued.chain, "tls.key": issued.key}
        await some.want()
        assert some.facts.identity
        assert some.facts.trust == ""
        rotated = authority.issue("orders.shop")
        data = {"tls.crt": rotated.chain, "tls.key": rotated.key, "ca.crt": rotated.ca}
        some.folder.secrets["shop", "orders-tls"] = data
        before = some.facts
        reads = some.folder.reads
        await some.want()
        assert some.folder.reads == reads  # its version is the same
        some.secrets.versions["shop", "orders-tls"] = "2"
        await some.want()
        assert some.facts.identity not in {"", before.identity}
        assert some.facts.trust

    run(story())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda files: files.clear(), "neither tls.crt nor cert-chain.pem"),
        (lambda files: files.pop(("/root", "/tls/tls.key")), "tls.crt but no tls.key"),
        (
            lambda files: files.update({("/root", "/tls/tls.crt"): b"junk"}),
            "tls.crt: the certificate is not valid PEM: it has no block",
        ),
        (
            lambda files: files.update({("/root", "/tls/ca.crt"): b"junk"}),
            "ca.crt: the CA certificate is not valid PEM: it has no block",
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
        some.folder.secrets["shop", "orders-tls"] = data
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


def test_a_folder_is_only_looked_at_while_nothing_changes(authority, monkeypatch):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        await some.want()
        reads, looks, changes = some.folder.reads, some.folder.looks, some.changes
        async with polling(some, monkeypatch):
            await until(lambda: some.folder.looks > looks + 5)
        assert (some.folder.reads, some.changes) == (reads, changes)

    run(story())


def test_nothing_is_read_that_nobody_wants(authority, monkeypatch):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        some.store.want((), {POD: some.pod})
        async with polling(some, monkeypatch):
            await asyncio.sleep(0.05)
        assert (some.folder.reads, some.folder.looks) == (0, 0)
        assert some.store.entry(DOWN) is None
        assert some.store.facts() == {}

    run(story())


def test_reading_holds_nobody_up(authority):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        some.folder.hold = asyncio.Event()
        some.ask()
        assert some.store.facts() == {}
        with pytest.raises(TimeoutError):
            async with time_limit(0.05):
                found = survey(some.pod, Inventory(pods={POD: some.pod}), node_annotations={})
                await some.store.prepare(found.certificates(), {POD: some.pod})
        some.folder.hold.set()
        await some.want()
        assert some.facts.identity
        assert some.changes == 1

    run(story())


def test_what_is_about_to_be_wanted_is_read_and_forgotten_if_it_is_not(authority, monkeypatch):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        found = survey(some.pod, Inventory(pods={POD: some.pod}), node_annotations={})
        preparing = asyncio.ensure_future(some.store.prepare(found.certificates(), {POD: some.pod}))
        await asyncio.sleep(0)
        some.store.want((), {POD: some.pod})  # a plan that does not know of it yet
        await preparing
        assert some.facts.identity
        await until(lambda: not some.store._all.expected)
        some.store.want((), {POD: some.pod})
        assert some.store.facts() == {}

    monkeypatch.setattr(module, "RETAIN", 0.01)
    run(story())


def test_secrets_that_cannot_be_read_are_tried_again_with_one_pause_for_the_namespace(authority, monkeypatch):
    async def story():
        monkeypatch.setattr(module, "FIRST_RETRY", 0.05)
        other = f"{names.UPSTREAM_SECRET}.8443"
        some = node({**BY_SECRET, other: "another"})
        await some.want()
        assert len(some.problems) == 2
        issued = authority.issue("orders.shop")
        async with polling(some, monkeypatch):
            reads = some.folder.reads
            await until(lambda: some.folder.reads > reads)
            for name in ("orders-tls", "another"):
                some.folder.secrets["shop", name] = {"tls.crt": issued.chain, "tls.key": issued.key}
            await until(lambda: not some.problems)
        assert some.facts.identity

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
            entry = some.store.entry(DOWN)
            past = msgspec.structs.replace(entry.identity, not_after=1e9)
            some.store._all.entries[DOWN] = replace(entry, identity=past)
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
        pem = await some.deliver(some.facts.identity)
        assert issued.key.strip() in pem
        assert issued.chain.strip() in pem
        assert pem.index(b"PRIVATE") < pem.index(b"CERTIFICATE")
        assert (await some.deliver(some.facts.trust)).strip() == issued.ca.strip()
        assert some.store.credential(POD, some.facts.trust).about == (
            f"annotation {names.DOWNSTREAM_PATH}.8443 '/tls' of pod shop/orders-1"
        )

    run(story())


def test_no_key_is_kept(authority):
    import gc

    async def story():
        some = node()
        issued = authority.issue("orders.shop")
        some.folder.put(issued)
        await some.want()
        await some.deliver(some.facts.identity)
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
        name = some.facts.identity
        source = some.store.credential(POD, name)
        some.folder.files["/root", "/tls/tls.key"] = b"junk"
        with pytest.raises(ConfigurationError, match=r"tls\.key"):
            await source.read()
        assert some.facts.identity == ""
        assert some.changes == 2
        with pytest.raises(ConfigurationError, match="no longer wanted"):
            await source.read()

    run(story())


def test_a_certificate_that_changed_meanwhile_is_replaced(authority):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        await some.want()
        before = some.facts.identity
        some.folder.put(authority.issue("orders.shop"))
        with pytest.raises(ConfigurationError, match="changed while"):
            await some.deliver(before)
        await until(lambda: some.facts.identity)
        assert some.facts.identity != before
        assert some.problems == []

    run(story())


def test_another_pods_credential_is_not_given(authority):
    async def story():
        some = node()
        some.folder.put(authority.issue("orders.shop"))
        await some.want()
        with pytest.raises(ConfigurationError):
            await some.store.credential(PodKey("shop", "other"), some.facts.identity).read()

    run(story())


def test_what_nobody_wants_is_forgotten_with_its_conditions(authority):
    async def story():
        some = node()
        await some.want()
        assert some.problems
        some.store.want((), {})
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
