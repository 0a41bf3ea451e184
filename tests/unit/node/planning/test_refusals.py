"""Why something cannot be steered."""

from __future__ import annotations

from typing import Any

import pytest

from sidestep.config import annotation_names as names
from sidestep.config.node_settings import NodeSettings
from sidestep.model.condition import ConditionType
from sidestep.model.pod import ServicePort, Transport
from sidestep.node.planning.plan import CertificateFacts
from sidestep.node.planning.refusals import opening_refusal, refusal_of, refusal_type
from sidestep.policy.survey import PortSurvey, Side, survey
from tests.unit.node.scenes import CERTIFIED, inventory, pod, service

GOOD = CertificateFacts("identity:a", "trust:a")
ALONE = CertificateFacts("identity:a")
BAD = CertificateFacts(problem="the key does not belong to it")


def surveyed(annotations: dict[str, str], number: int = 8443, *, app_protocol: str = "") -> PortSurvey:
    services = (service(ServicePort(number, number, app_protocol=app_protocol)),) if app_protocol else ()
    some = pod(annotations=annotations)
    found = survey(some, inventory(some, services=services), node_annotations={}).port(number, Transport.TCP)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("fields", "settings", "reason"),
    [
        ({}, {}, ""),
        ({}, {"enabled": False}, "sidestep.dev/enabled"),
        ({"host_network": True}, {}, "the host's network"),
        ({}, {"namespaces": ("prod", "test")}, "sidestep.dev/namespaces: prod, test"),
        ({"namespace": "prod"}, {"namespaces": ("prod",)}, ""),
    ],
)
def test_pods(fields, settings, reason):
    found = refusal_of(pod(**fields), NodeSettings(**settings))
    assert (reason in found) if reason else found == ""


FORWARDING = {f"{names.FORWARD_CLIENT_CERT}.8080": "enabled"}
VERIFYING = {**CERTIFIED, f"{names.CLIENT_AUTH}.8443": "require"}

PORTS: dict[str, tuple[PortSurvey, Any, str]] = {
    "TLS with its certificate": (surveyed(CERTIFIED), GOOD, ""),
    "TLS, and the certificate is not read yet": (surveyed(CERTIFIED), None, "it has not been read yet"),
    "TLS, and the certificate is bad": (surveyed(CERTIFIED), BAD, "cannot be used: the key does not belong"),
    "TLS without any certificate": (
        surveyed({}),
        None,
        "port 8443 speaks TLS (port name https) and no certificate is configured to open it: set",
    ),
    "HTTP in clear needs none": (surveyed({}, 8080, app_protocol="http"), None, ""),
    "no HTTP": (surveyed({}, 8080, app_protocol="tcp"), None, "rules out HTTP filters"),
    "perhaps TLS, which need not be opened": (surveyed({}, 8080), None, ""),
    "perhaps TLS, which must be opened": (
        surveyed(FORWARDING, 8080),
        None,
        "8080 may speak TLS, no certificate is configured",
    ),
    "clients verified by an authority": (surveyed(VERIFYING), GOOD, ""),
    "clients verified by nobody": (surveyed(VERIFYING), ALONE, "comes with no ca.crt to verify them against"),
}


@pytest.mark.parametrize("port", PORTS)
def test_ports(port):
    found, downstream, reason = PORTS[port]
    told = opening_refusal(found, {Side.DOWNSTREAM: downstream} if downstream is not None else {})
    assert (reason in told) if reason else told == ""


SHOWING = {**CERTIFIED, f"{names.UPSTREAM_SECRET}.8443": "mine", f"{names.CLIENT_AUTH}.8443": "request"}
CLOSING = {**SHOWING, f"{names.FORWARD_CLIENT_CERT}.8443": "enabled"}


@pytest.mark.parametrize(
    ("annotations", "upstream", "refused"),
    [
        (SHOWING, BAD, False),  # the app gets its clients end to end
        (CLOSING, BAD, True),  # every client of an app that asks for certificates would be closed
        (CLOSING, GOOD, False),
        (CLOSING, CertificateFacts(trust="trust:a"), False),
        (CLOSING, CertificateFacts("identity:a", problem="its ca.crt is none"), False),
        (CLOSING, CertificateFacts(pending="no process runs yet"), False),
        (CLOSING, None, False),
    ],
)
def test_the_certificate_that_is_shown_to_the_app(annotations, upstream, refused):
    facts = {Side.DOWNSTREAM: GOOD} | ({Side.UPSTREAM: upstream} if upstream is not None else {})
    told = opening_refusal(surveyed(annotations), facts)
    assert bool(told) == refused
    if refused:
        assert f"{names.UPSTREAM_SECRET}.8443 'mine'" in told
        assert "the key does not belong" in told


def test_an_annotation_that_names_no_certificate_for_the_app():
    told = opening_refusal(surveyed({**CLOSING, f"{names.UPSTREAM_SECRET}.8443": "No Name"}), {Side.DOWNSTREAM: GOOD})
    assert "that port 8443 shows the app cannot be used" in told
    assert "No Name" in told


def test_the_kind_of_condition():
    assert refusal_type(surveyed({})) is ConditionType.NO_CERTIFICATE
    plain = surveyed(FORWARDING, 8080, app_protocol="http")
    assert refusal_type(plain) is ConditionType.PROTOCOL_CONTRADICTION
