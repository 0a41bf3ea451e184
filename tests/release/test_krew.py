"""The krew plugin that `make release-check` built for this machine, unpacked and linked as krew does, and run.

PLUGIN names the folder with the manifest and the archive.
"""

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sidestep import __version__

FOLDER = Path(os.environ.get("PLUGIN", Path(__file__).resolve().parents[2] / "build" / "release"))
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


@pytest.fixture(scope="module")
def manifest():
    return yaml.safe_load((FOLDER / "sidestep.krew.yaml").read_text())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """What krew unpacks."""
    folder = tmp_path_factory.mktemp("store")
    archive = FOLDER / f"kubectl-sidestep-{__version__}-linux-{ARCHITECTURE}.tar.gz"
    subprocess.run(["tar", "-C", folder, "-xzf", archive], timeout=120, check=True)
    return folder


@pytest.fixture
def plugin(store, tmp_path):
    """The link that krew makes."""
    link = tmp_path / "bin" / "kubectl-sidestep"
    link.parent.mkdir()
    link.symlink_to(store / "kubectl-sidestep")
    return link


def run(plugin, *words, **environment):
    """Run it with this Python as python3, in an environment that leads modules of others to it."""
    (plugin.parent / "python3").symlink_to(Path(sys.executable).resolve())
    foreign = plugin.parent / "foreign" / "click"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("raise SystemExit('of others')\n")
    environment = {
        "PATH": f"{plugin.parent}:/usr/bin:/bin",
        "HOME": str(plugin.parent),
        "PYTHONPATH": str(foreign.parent),
        **environment,
    }
    return subprocess.run([plugin, *words], env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_manifest_is_one_that_krew_takes(manifest):
    """The fields that krew asks for: sigs.k8s.io/krew, internal/index/validation."""
    assert (manifest["apiVersion"], manifest["kind"]) == ("krew.googlecontainertools.github.com/v1alpha2", "Plugin")
    assert manifest["metadata"]["name"] == "sidestep"
    spec = manifest["spec"]
    assert spec["version"] == f"v{__version__}"
    assert 0 < len(spec["shortDescription"]) <= 50
    assert spec["description"]
    for each in spec["platforms"]:
        assert set(each["selector"]["matchLabels"]) == {"os", "arch"}
        assert each["uri"].startswith("https://")
        assert each["bin"] == "kubectl-sidestep"


def test_the_digests_are_those_of_the_archives(manifest):
    for each in manifest["spec"]["platforms"]:
        path = FOLDER / each["uri"].rpartition("/")[2]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == each["sha256"]


def test_it_runs_with_its_own_packages_only(plugin):
    done = run(plugin, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sidestep, version {__version__}\n", "")


def test_it_has_all_that_reaching_a_cluster_takes(plugin, tmp_path):
    kubeconfig = tmp_path / "config"
    cluster = {"name": "none", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "none", "context": {"cluster": "none", "user": "none"}}
    user = {"name": "none", "user": {"token": "x"}}
    kubeconfig.write_text(
        yaml.safe_dump({"current-context": "none", "clusters": [cluster], "contexts": [context], "users": [user]})
    )
    done = run(plugin, "list", "--kubeconfig", str(kubeconfig))
    assert done.returncode == 1
    assert done.stderr.startswith("sidestep: ")
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_python_is_told_so(plugin, store):
    own = store / "lib" / f"{sys.version_info.major}.{sys.version_info.minor}"
    kept = own.rename(store / "lib" / "3.99")
    try:
        done = run(plugin, "--version")
    finally:
        kept.rename(own)
    assert done.returncode == 1
    assert done.stderr.startswith(f"kubectl sidestep: python3 is Python {own.name}, and this needs one of ")
