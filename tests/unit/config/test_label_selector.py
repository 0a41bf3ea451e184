"""Label selectors as people write them."""

import pytest

from sidestep.config.label_selector import parse_label_selector
from sidestep.model.errors import ConfigurationError

LABELS = {"app": "orders", "env": "dev", "example.com/team": "a_b", "empty": ""}


@pytest.mark.parametrize(
    ("text", "selects"),
    [
        ("app=orders", True),
        ("app==orders", True),
        ("app=other", False),
        ("app!=other", True),
        ("app!=orders", False),
        ("none!=x", True),
        ("app", True),
        ("none", False),
        ("!none", True),
        ("! app", False),
        ("env in (dev,test)", True),
        ("env in ( prod , test )", False),
        ("env notin (prod)", True),
        ("none notin (prod)", True),
        ("env notin (dev)", False),
        ("empty=", True),
        ("app=", False),
        ("example.com/team=a_b", True),
        ("app=orders,env!=prod,!none", True),
        (" app = orders , env in (dev) ", True),
        ("app=orders,env=prod", False),
        ("in in (in)", False),
    ],
)
def test_what_is_selected(text, selects):
    assert parse_label_selector(text).matches(LABELS) is selects


@pytest.mark.parametrize(
    "text",
    [
        "=x", "app=orders,", ",", "app=or ders", "app in dev", "app in (", "app in (a b)", "app=ü", "!", "a=b=c", "-a",
        "a b", "app>1", "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_none(text):
    with pytest.raises(ConfigurationError):
        parse_label_selector(text)
