"""Which earlier alerts a session may ask for, and which of them are its own."""

import pytest
from msgspec.structs import replace

from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Intercept, Kind, Live, WorkloadRef
from sidestep.policy.earlier_alerts import check_alert, is_of

ASKED = Intercept(
    "u", "shop", "i", Kind.WIRETAP, WorkloadRef("orders", "deployment"), "8443", records=Live.ALERTS, alert="2c6db743-1"
)


def test_a_session_for_alerts_may_ask_for_one():
    check_alert(ASKED)
    check_alert(replace(ASKED, alert="", records=Live.NOTHING))


@pytest.mark.parametrize("records", [Live.ALL, Live.NOTHING])
def test_no_other_session_may(records):
    with pytest.raises(RefusedError):
        check_alert(replace(ASKED, records=records))


@pytest.mark.parametrize("alert", ["1", "2c6db743", "2c6db743-", "2C6DB743-1", "2c6db743-1\n", "2c6db743-" + "1" * 20])
def test_an_id_has_its_form(alert):
    with pytest.raises(ConfigurationError):
        check_alert(replace(ASKED, alert=alert))


@pytest.mark.parametrize(
    ("change", "whose", "expected"),
    [
        ({}, {}, True),
        ({}, {"namespace": "bank"}, False),
        ({}, {"workload": "deployment/payments"}, False),
        ({}, {"workload": "statefulset/orders"}, False),
        ({}, {"workload": None}, False),
        ({"workload": WorkloadRef("orders")}, {"workload": "statefulset/orders"}, True),
        ({"workload": WorkloadRef("orders-1", "pod")}, {}, True),
        ({"workload": WorkloadRef("orders-1", "pod")}, {"workload": None}, True),
        ({"workload": WorkloadRef("orders-1")}, {"workload": None}, True),
        ({"workload": WorkloadRef("orders-1", "deployment")}, {}, False),
        ({"pod": "orders-1"}, {}, True),
        ({"pod": "orders-2"}, {}, False),
    ],
)
def test_alerts_are_those_of_the_pods_of_the_session(change, whose, expected):
    told = {"namespace": "shop", "pod": "orders-1", "workload": "deployment/orders", **whose}
    assert is_of(replace(ASKED, **change), **told) is expected
