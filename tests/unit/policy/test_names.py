"""Names of Kubernetes objects."""

import pytest

from sidestep.policy.names import is_label, is_subdomain


@pytest.mark.parametrize(
    ("text", "label", "subdomain"),
    [
        ("orders", True, True),
        ("0-a-9", True, True),
        ("a" * 63, True, True),
        ("a" * 64, False, True),
        ("a.b", False, True),
        (".".join(["a" * 50] * 5)[:253], False, True),
        ("a." * 126 + "aa", False, False),
        ("", False, False),
        ("-a", False, False),
        ("a-", False, False),
        ("a..b", False, False),
        ("a.", False, False),
        ("Orders", False, False),
        ("a_b", False, False),
        ("a\n", False, False),
        ("é", False, False),
    ],
)
def test_labels_and_subdomains(text, label, subdomain):
    assert is_label(text) is label
    assert is_subdomain(text) is subdomain
