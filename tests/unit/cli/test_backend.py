"""Which backend a command talks to."""

import json
import socket

import pytest

from sidestep.cli import backend
from sidestep.cli.backend import LOCAL_NAMESPACE, choose_backend, namespace_for
from sidestep.kube.access import ClusterAccess
from sidestep.model.errors import ConfigurationError


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A machine without daemon, kubeconfig and service account; returns the default socket's path."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    path = tmp_path / "node.sock"
    monkeypatch.setattr(backend, "DEFAULT_SOCKET", path)
    return path


@pytest.fixture
def kubeconfig(tmp_path):
    path = tmp_path / "config"
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:6443"}}
    context = {"name": "dev", "context": {"cluster": "c", "user": "ada", "namespace": "shop"}}
    user = {"name": "ada", "user": {"token": "x"}}
    document = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "dev"}
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **document}))
    return path


def listening(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_what_is_given_decides(alone, kubeconfig, tmp_path):
    with listening(alone):
        assert choose_backend(tmp_path / "x", None, None) == tmp_path / "x"
        found = choose_backend(None, kubeconfig, None)
        assert isinstance(found, ClusterAccess)
        assert namespace_for(found, None) == "shop"
        assert namespace_for(found, "other") == "other"


def test_a_daemon_that_answers_comes_before_a_kubeconfig(alone, kubeconfig, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    # The library reads the variable once, when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
    with listening(alone):
        assert choose_backend(None, None, None) == alone
    assert isinstance(choose_backend(None, None, None), ClusterAccess), "its socket file is left, nobody answers"


def test_without_anything_it_is_this_machine(alone):
    assert choose_backend(None, None, None) == alone
    assert namespace_for(alone, None) == LOCAL_NAMESPACE


def test_a_kubeconfig_that_cannot_be_used_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError):
        choose_backend(None, tmp_path / "missing", None)
    with pytest.raises(ConfigurationError):
        choose_backend(None, None, "context")
