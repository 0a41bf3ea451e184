"""Where a certificate is read: which folders, in which order, or which Secret."""

import pytest

from sidestep.config.annotations import CertificateSource, SourceKind
from sidestep.model.errors import ConfigurationError
from sidestep.model.inventory import Inventory, Secret
from sidestep.model.pod import Location, Pod, PodKey
from sidestep.node.certificates.material import InventorySecrets, source_of
from sidestep.node.certificates.reader import ReadError
from sidestep.node.certificates.requests import Folder, ManifestSecret
from sidestep.policy.survey import CertificateKey, Side, WantedCertificate

KEY = CertificateKey(PodKey("shop", "orders-1"), 8443, Side.DOWNSTREAM)


class Manifests:
    """A source of inventories that keeps Secrets in one file."""

    def secret_source(self, secret, namespace, name):
        if secret is None:
            raise ConfigurationError(f"there is no Secret {namespace}/{name}")
        return ManifestSecret("/manifests/a.yaml", namespace, name)

    def explain(self, namespace, name, error):
        return f"{namespace}/{name}: {error}"


def secrets(*found):
    inventory = Inventory(secrets={(each.namespace, each.name): each for each in found})
    return InventorySecrets(Manifests(), lambda: inventory)


def wanted(kind, value, containers=("app", "side")):
    return WantedCertificate(KEY, CertificateSource(kind, value, "annotation", "pod shop/orders-1"), containers)


def roots(location, containers=("app", "side")):
    pod = Pod(KEY.pod, "uid", location=location)
    source = source_of(wanted(SourceKind.PATH, "/tls", containers), pod, secrets())
    assert isinstance(source, Folder)
    assert source.folder == "/tls"
    return source.roots


def test_a_path_is_looked_up_in_the_containers_in_their_order():
    location = Location(pids={"side": 7, "app": 9}, births={9: 100})
    assert roots(location) == (("/proc/9/root", 100), ("/proc/7/root", None))
    assert roots(location, ("side",)) == (("/proc/7/root", None),)


def test_a_stated_root_comes_first_and_a_process_of_the_pod_stands_for_all():
    assert roots(Location(root="/srv", pids={"app": 9})) == (("/srv", None), ("/proc/9/root", None))
    assert roots(Location(pids={"": 5})) == (("/proc/5/root", None),)


@pytest.mark.parametrize(
    "pod", [None, Pod(KEY.pod, "uid", location=Location(pids={"other": 5}))], ids=["gone", "other"]
)
def test_a_pod_without_a_process_here_has_no_folders(pod):
    with pytest.raises(ConfigurationError, match="no container"):
        source_of(wanted(SourceKind.PATH, "/tls"), pod, secrets())


def test_a_secret_is_where_the_source_of_inventories_keeps_it():
    found = secrets(Secret("shop", "tls", version="7"))
    source = source_of(wanted(SourceKind.SECRET, "tls"), None, found)
    assert source == ManifestSecret("/manifests/a.yaml", "shop", "tls")
    assert (found.version("shop", "tls"), found.version("shop", "other")) == ("7", "")
    assert found.explain("shop", "tls", ReadError("is gone")) == "shop/tls: is gone"
    with pytest.raises(ConfigurationError, match="no Secret shop/other"):
        source_of(wanted(SourceKind.SECRET, "other"), None, found)
