"""What the end-to-end tests know about versions of Kubernetes, without a cluster of each."""

import pytest

from tests.debian.cache import BuildError
from tests.e2e import components, releases
from tests.e2e.releases import Release


def programs(folder, version, containerd="1.7.24"):
    for name, said in (
        ("kube-apiserver", f"Kubernetes v{version}"),
        ("containerd", f"containerd github.com/containerd/containerd/v2 {containerd} 1234567"),
    ):
        (folder / name).write_text(f"#!/bin/sh\necho '{said}'\n")
        (folder / name).chmod(0o755)
    return folder


def settings(release, folder):
    return components.Settings(folder / "settings", snapshotter="overlayfs", release=release)


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("Kubernetes v1.20.2\n", "1.20.2"),
        ("Kubernetes v1.36.0-rc.1", "1.36.0"),
        ("Kubernetes v1.30.14+k3s1", "1.30.14"),
    ],
)
def test_the_version(said, version):
    assert releases.version(said) == version


@pytest.mark.parametrize("said", ["", "kube-apiserver 1.20", "Kubernetes v2.0.0"])
def test_no_version(said):
    with pytest.raises(BuildError, match="no version"):
        releases.version(said)


def test_the_programs_tell_it(tmp_path):
    assert releases.of(programs(tmp_path, "1.36.2")).version == "1.36.2"


def test_a_folder_without_programs(tmp_path):
    with pytest.raises(BuildError, match="does not tell its version"):
        releases.of(tmp_path)


@pytest.mark.parametrize(
    ("version", "suite", "supported", "ports", "runtime", "v1"),
    [
        ("1.20.2", "bookworm", False, True, True, False),
        ("1.24.0", "bookworm", False, False, True, False),
        ("1.29.9", "trixie", False, False, False, False),
        ("1.30.0", "trixie", True, False, False, False),
        ("1.31.0", "trixie", True, False, False, True),
        ("1.35.1", "trixie", True, False, False, True),
        ("1.36.2", "forky", True, False, False, True),
    ],
)
def test_what_a_version_needs(tmp_path, version, suite, supported, ports, runtime, v1):
    release = Release(tmp_path, version)
    made = settings(release, tmp_path)
    assert (release.suite, release.supported) == (suite, supported)
    assert ("--insecure-port=0" in components.apiserver(made)) == ports
    assert ("--port=0" in components.scheduler(made)) == ports
    assert ("--port=0" in components.controller_manager(made)) == ports
    assert ("--container-runtime=remote" in components.kubelet(made, cgroup="/x")) == runtime
    assert (made._kubelet().get("failCgroupV1") is False) == v1


@pytest.mark.parametrize(("containerd", "version"), [("1.6.20~ds1", 2), ("1.7.24", 2), ("2.1.9", 3)])
def test_containerd_gets_the_configuration_of_its_version(tmp_path, monkeypatch, containerd, version):
    monkeypatch.setattr(Release, "root", lambda self: tmp_path)
    release = Release(programs(tmp_path, "1.36.2", containerd), "1.36.2")
    assert settings(release, tmp_path)._containerd().startswith(f"version = {version}\n")


def test_plugins_of_the_folder_come_first(tmp_path):
    assert Release(tmp_path, "1.36.2").plugins == releases.CNI
    (tmp_path / "bridge").touch()
    assert Release(tmp_path, "1.36.2").plugins == str(tmp_path)
