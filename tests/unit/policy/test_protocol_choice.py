"""The table by which the protocol of a port is chosen, row by row."""

import pytest

from sidestep.config.annotations import CertificateScope
from sidestep.model.pod import Transport
from sidestep.policy.protocol_choice import PortFacts, Use, choose

NEVER, ALWAYS, PROBE = Use.NEVER, Use.ALWAYS, Use.PROBE
PORT, DEFAULT, NONE = CertificateScope.PORT, CertificateScope.DEFAULT, CertificateScope.NONE


def facts(app_protocol="", *, certificate=PORT, names=(), number=8080, numbers=(), transport=Transport.TCP):
    return PortFacts(
        number=number,
        transport=transport,
        app_protocol=app_protocol,
        names=frozenset(names),
        numbers=frozenset(numbers),
        certificate=certificate,
    )


ROWS = [
    (facts(transport=Transport.UDP), NEVER, NEVER, False, "UDP"),
    (facts("https", transport=Transport.UDP), NEVER, NEVER, False, "UDP"),
    (facts("tcp"), NEVER, NEVER, False, "appProtocol tcp"),
    (facts("udp"), NEVER, NEVER, False, "appProtocol udp"),
    (facts("TCP"), NEVER, NEVER, False, "appProtocol tcp"),
    (facts("kubernetes.io/h2c"), NEVER, ALWAYS, True, "appProtocol kubernetes.io/h2c"),
    (facts("h2c"), NEVER, ALWAYS, True, "appProtocol h2c"),
    (facts("kubernetes.io/ws"), NEVER, NEVER, True, "appProtocol kubernetes.io/ws"),
    (facts("ws"), NEVER, NEVER, True, "appProtocol ws"),
    (facts("http"), NEVER, NEVER, True, "appProtocol http"),
    (facts("kubernetes.io/http"), NEVER, NEVER, True, "appProtocol kubernetes.io/http"),
    (facts("HTTP"), NEVER, NEVER, True, "appProtocol http"),
    (facts("grpc"), ALWAYS, ALWAYS, True, "appProtocol grpc"),
    (facts("http2"), ALWAYS, ALWAYS, True, "appProtocol http2"),
    (facts("https"), ALWAYS, PROBE, True, "appProtocol https"),
    (facts("wss"), ALWAYS, PROBE, True, "appProtocol wss"),
    (facts("kubernetes.io/wss"), ALWAYS, PROBE, True, "appProtocol kubernetes.io/wss"),
    (facts(), ALWAYS, PROBE, True, "downstream certificate"),
    (facts("redis"), ALWAYS, PROBE, True, "downstream certificate"),
    (facts(certificate=NONE, names=("https",)), ALWAYS, PROBE, True, "port name https"),
    (facts(certificate=DEFAULT, names=("web", "HTTPS")), ALWAYS, PROBE, True, "port name https"),
    (facts(certificate=NONE, number=443), ALWAYS, PROBE, True, "port number 443"),
    (facts(certificate=NONE, numbers=(8080, 443)), ALWAYS, PROBE, True, "port number 443"),
    (facts(certificate=NONE), PROBE, PROBE, True, "probing"),
    (facts(certificate=DEFAULT), PROBE, PROBE, True, "probing"),
    (facts("redis", certificate=NONE), PROBE, PROBE, True, "probing"),
    (facts(certificate=NONE, names=("https-alt",), number=8443), PROBE, PROBE, True, "probing"),
]


@pytest.mark.parametrize(("given", "tls", "http2", "http_filters", "source"), ROWS)
def test_row(given, tls, http2, http_filters, source):
    chosen = choose(given)
    assert (chosen.tls, chosen.http2, chosen.http_filters, chosen.source) == (tls, http2, http_filters, source)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (facts("h2c", certificate=PORT), "appProtocol h2c"),
        (facts("http", names=("https",), number=443), "appProtocol http"),
        (facts("grpc", names=("https",)), "appProtocol grpc"),
        (facts("https", number=443), "appProtocol https"),
        (facts(names=("https",), number=443), "downstream certificate"),
        (facts(certificate=NONE, names=("https",), number=443), "port name https"),
    ],
)
def test_the_first_row_that_applies_wins(earlier, later):
    assert choose(earlier).source == later


def test_filters_on_udp_are_refused_with_the_reason():
    assert "UDP" in choose(facts(transport=Transport.UDP)).refusal


@pytest.mark.parametrize("app_protocol", ["tcp", "udp", "TCP"])
def test_filters_on_app_protocol_tcp_are_refused_with_the_words_of_the_design(app_protocol):
    assert f"appProtocol {app_protocol.lower()} rules out HTTP filters" in choose(facts(app_protocol)).refusal


@pytest.mark.parametrize(
    "given",
    [
        facts("grpc", certificate=NONE, number=9000),
        facts("https", certificate=NONE, number=9000),
        facts(certificate=NONE, number=9000, names=("https",)),
        facts(certificate=NONE, number=9000, numbers=(443,)),
    ],
)
def test_tls_without_certificate_refuses_filters_and_names_the_two_annotations(given):
    refusal = choose(given).refusal
    assert "telepresence.io/downstream-tls-path.9000" in refusal
    assert "telepresence.io/downstream-tls-secret.9000" in refusal


@pytest.mark.parametrize(
    "given",
    [facts("https"), facts("https", certificate=DEFAULT), facts("http", certificate=NONE), facts("ws"), facts()],
)
def test_nothing_is_refused_where_filters_can_work(given):
    assert choose(given).refusal == ""


@pytest.mark.parametrize("app_protocol", ["tcp", "udp", "h2c", "kubernetes.io/h2c", "ws", "kubernetes.io/ws", "http"])
def test_never_tls_with_a_certificate_is_a_contradiction_naming_both(app_protocol):
    annotation = "telepresence.io/downstream-tls-secret.8080"
    given = PortFacts(8080, app_protocol=app_protocol, certificate=PORT, certificate_annotation=annotation)
    contradiction = choose(given).contradiction
    assert contradiction is not None
    assert f"appProtocol {app_protocol}" in contradiction
    assert annotation in contradiction


@pytest.mark.parametrize(
    "given",
    [facts("http", certificate=NONE), facts("http", certificate=DEFAULT), facts("https"), facts(), facts("grpc")],
)
def test_no_contradiction_otherwise(given):
    assert choose(given).contradiction is None
