"""Kubeconfigs that the library would choke on: one reason, soon, that names the file."""

from __future__ import annotations

import pytest

from sidestep.kube import kubeconfig
from sidestep.model.errors import ConfigurationError

WITH_PLUGIN = """
apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: a, user: a}}]
clusters: [{name: a, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: a, user: {exec: {command: /bin/true, apiVersion: client.authentication.k8s.io/v1}}}]
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ('{"a":' * 100_000, "nested more than 64 deep"),
        ("a: [", "did not find expected"),
        ("\0", "does not allow"),
        (WITH_PLUGIN, "cannot log in: exec: "),
    ],
    ids=["deep list", "deep mapping", "unfinished", "binary", "failing plugin"],
)
@pytest.mark.timeout(60)
def test_what_cannot_be_used_is_one_reason(tmp_path, text, reason, capfd):
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        kubeconfig.load(path)
    assert f"kubeconfig {path}" in str(caught.value)
    assert reason in str(caught.value)
    assert capfd.readouterr().err == ""
