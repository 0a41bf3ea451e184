"""Which session `sidestep leave` means."""

import pytest

from sidestep.cli.session_choice import KINDS, Wanted, choose, parse_session
from sidestep.model.errors import RefusedError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("orders", Wanted("orders")),
        ("intercept/orders", Wanted("orders", "intercept")),
        ("intercepts/orders", Wanted("orders", "intercept")),
        ("flows/orders-flows", Wanted("orders-flows", "flows")),
        ("inspection/a", Wanted("a", "inspection")),
        ("shop/orders", Wanted("orders", namespace="shop")),
        ("shop/wiretap/orders", Wanted("orders", "wiretap", "shop")),
        ("shop/pod/orders", None),
        ("a/b/c/d", None),
        ("shop/", None),
        ("/orders", None),
        ("", None),
        ("shop//orders", None),
    ],
)
def test_what_can_be_written(text, wanted):
    assert parse_session(text) == wanted


@pytest.mark.parametrize(
    ("kind", "there", "chosen"),
    [
        ("", ["intercept"], "intercept"),
        ("", ["flows", "wiretap", "intercept"], "intercept"),
        ("", ["wiretap"], "wiretap"),
        ("", ["capture", "flows"], "capture"),
        ("flows", ["intercept", "flows"], "flows"),
        ("wiretap", ["intercept", "wiretap"], "wiretap"),
        ("", ["of a later version"], "of a later version"),
    ],
)
def test_the_session_that_is_meant(kind, there, chosen):
    assert choose(Wanted("orders", kind), there, "shop") == chosen


@pytest.mark.parametrize(
    ("kind", "there", "text"),
    [
        ("", [], "there is no session shop/orders; sidestep status shows those there are"),
        ("", ["flows"], "shop/orders is somebody's flows; to end it: sidestep leave flows/orders -n shop"),
        ("", ["capture", "wiretap"], "is a wiretap and a capture: write wiretap/orders or capture/orders"),
        (
            "intercept",
            ["flows"],
            "there is no intercept shop/orders (shop/orders is somebody's flows); sidestep status",
        ),
        ("flows", ["intercept"], "there is no flows shop/orders (shop/orders is an intercept); sidestep status"),
        ("wiretap", [], "there is no wiretap shop/orders; sidestep status"),
    ],
)
def test_what_is_refused(kind, there, text):
    with pytest.raises(RefusedError) as caught:
        choose(Wanted("orders", kind), there, "shop")
    assert text in str(caught.value)


def test_every_kind_can_be_written():
    assert [parse_session(f"{kind}/a") for kind in KINDS] == [Wanted("a", kind) for kind in KINDS]
