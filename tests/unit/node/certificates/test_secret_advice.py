"""The commands that are advised do what they say, also when they are pasted."""

import shlex

import pytest

from sidestep.node.certificates.secret_advice import secret_advice


@pytest.mark.parametrize("secret", ["orders-tls", "a.b", "x; rm -rf ~", "$(id)", "`id`", "a'b", "-o yaml", "Ä"])
def test_a_shell_takes_the_name_as_one_word(secret):
    told = secret_advice(("shop", secret), "sidestep:sidestep-node")
    narrow, _, wide = told.partition(" - or all of namespace shop with: ")
    words = shlex.split(narrow.partition("with: ")[2])
    assert words[words.index("create") + 1] == "role"
    assert f"--resource-name={secret}" in words
    assert [word for word in words if word in {"rm", "id", "yaml", ";"}] == []
    role = words[words.index("role") + 1]
    assert words[words.index("&&") + 1 :] == [
        *("kubectl", "create", "rolebinding", role, f"--role={role}"),
        *("--serviceaccount=sidestep:sidestep-node", "-n", "shop"),
    ]
    assert shlex.split(wide) == [
        *("kubectl", "create", "rolebinding", "sidestep-secrets", "--clusterrole=sidestep-secrets"),
        *("--serviceaccount=sidestep:sidestep-node", "-n", "shop"),
    ]
