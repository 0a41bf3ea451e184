"""What is found out before a daemon starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidestep.config.node_options import NodeOptions
from sidestep.model.errors import ConfigurationError
from sidestep.node.manifests_lock import ManifestsLock
from sidestep.node.startup_checks import MAX_SOCKET, find_place


@pytest.fixture
def root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def options(folder: Path, socket: str | None = None) -> NodeOptions:
    return NodeOptions(manifests=folder, node_name="n1", socket=Path(socket or str(folder / "run" / "node.sock")))


def test_without_root_nothing_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigurationError, match="needs root"), find_place(options(tmp_path)):
        pass


@pytest.mark.usefixtures("root")
def test_a_socket_whose_path_is_too_long(tmp_path):
    path = "/" + "s" * MAX_SOCKET
    with pytest.raises(ConfigurationError, match=f"at most {MAX_SOCKET} bytes"), find_place(options(tmp_path, path)):
        pass


@pytest.mark.usefixtures("root")
def test_local_mode_holds_the_lock_on_the_manifests(tmp_path):
    with find_place(options(tmp_path)) as place:
        assert place.lock is not None
        assert place.access is None
        other = ManifestsLock(tmp_path)
        assert not other._try()
    assert other._try()
    other.close()


@pytest.mark.usefixtures("root")
def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be opened"), find_place(options(tmp_path / "gone")):
        pass


@pytest.mark.usefixtures("root")
def test_a_node_of_a_cluster_needs_its_service_account(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    cluster = NodeOptions(manifests=None, node_name="n1", socket=tmp_path / "node.sock")
    with pytest.raises(ConfigurationError), find_place(cluster):
        pass
