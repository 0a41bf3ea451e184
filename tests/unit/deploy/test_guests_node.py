"""A guest finds the parts of its Kubernetes node by the names that this machine gave to them. Nothing is built here."""

from __future__ import annotations

import pytest

from tests.debian import roots
from tests.e2e import binaries, images
from tests.e2e.releases import Release
from tests.kernels import node


class Builder:
    """Writes archives as if it had built images."""

    def __init__(self, work):
        pass

    def base(self, name, archive):
        assert archive.is_file()

    def build(self, name, file, *options, context):
        pass

    def save(self, name, archive):
        archive.write_text(name)

    def prune(self):
        pass


def root(partial, *of):
    for name in ("root/usr", "stage"):
        (partial / name).mkdir(parents=True)
    (partial / "root/usr/of").write_text(repr(of[-1]))


def programs(partial):
    (partial / "bin").mkdir()
    (partial / "bin/kubelet").write_text("kubelet")


def refuse(*arguments, **options):
    raise AssertionError("the guest would build something")


def parts():
    """What a run of the end-to-end tests begins with."""
    built = images.images().archives
    found = binaries.kubernetes()
    return [*built.values(), found / "kubelet", Release(found, binaries.VERSION).root() / "usr/of"]


def test_a_guest_builds_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SIDESTEP_DEBIAN_MIRROR", "https://mirror.test/debian")
    machine, guest = tmp_path / "machine", tmp_path / "guest"
    monkeypatch.setenv("SIDESTEP_E2E_CACHE", str(machine))
    making = [(roots, "_minimal", root), (roots, "_furnished", root), (binaries, "_build", programs)]
    making += [(images, "Builder", Builder), (images, "wheels", lambda work, *machines: work)]
    for module, name, stub in making:
        monkeypatch.setattr(module, name, stub)
    node.furnish(guest, tmp_path / "log")
    expected = [(path.relative_to(machine), path.read_text()) for path in parts()]
    assert len(expected) == 5

    for module, name, _ in making:
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setenv("SIDESTEP_E2E_CACHE", str(guest))
    monkeypatch.setenv("SIDESTEP_DEBIAN_MIRROR", (guest / "mirror").read_text())
    assert [(path.relative_to(guest), path.read_text()) for path in parts()] == expected
    with pytest.raises(AssertionError, match="would build"):
        roots.root("other", "trixie", ["make"])
