"""What an operator is told about TLS that is not opened."""

from __future__ import annotations

import pytest

from sidestep.model.condition import ConditionType
from sidestep.proxy.tls import failures
from sidestep.snapshots.ports import PortSnapshot

PORT = PortSnapshot(8443, "tcp", "always", "probe", ())
CLOSING = PortSnapshot(8443, "tcp", "always", "probe", (), forward_client_cert=True)
TEXTS = [
    (failures.late_client_auth, (), ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER, "after the handshake"),
    (failures.server_name_unsupported, (b"10.0.0.1",), ConditionType.SNI_UNSUPPORTED, "'10.0.0.1'"),
    (failures.certificate_requested, (), ConditionType.CLIENT_CERTIFICATE_REQUESTED, "downstream-client-auth.8443"),
    (failures.unverified, ("app.test", "self-signed"), ConditionType.UPSTREAM_UNVERIFIED, "as app.test against"),
    (failures.unverified, ("", "no name"), ConditionType.UPSTREAM_UNVERIFIED, "(no name)"),
    (failures.alpn_unsupported, ("spdy/3",), ConditionType.ALPN_UNSUPPORTED, "'spdy/3'"),
    (failures.no_common_alpn, (("h2", "http/1.1"),), ConditionType.ALPN_UNSUPPORTED, "(h2, http/1.1)"),
    (failures.handshake_failed, ("BAD",), ConditionType.UPSTREAM_TLS_FAILED, "failed: BAD"),
    (failures.client_unsupported, (), ConditionType.CLIENT_TLS_UNSUPPORTED, "no cipher or signature"),
]


@pytest.mark.parametrize(("failure", "known", "kind", "says"), TEXTS)
def test_a_failure_says_what_was_found_and_what_becomes_of_the_connection(failure, known, kind, says):
    passed, closed = failure(PORT, *known), failure(CLOSING, *known)
    assert passed.type is closed.type is kind
    assert says in passed.text
    assert "TLS is carried end to end" in passed.text
    assert "the connection is closed, because sidestep.dev/forward-client-cert.8443 is enabled" in closed.text


def test_a_long_server_name_is_cut():
    assert len(failures.server_name_unsupported(PORT, b"x" * 60_000).text) < 400


def test_a_certificate_that_cannot_be_used_is_named_with_its_error():
    failure = failures.certificate_invalid(PORT, ValueError("no key"))
    assert (failure.type, failure.text) == (
        ConditionType.CERTIFICATE_INVALID,
        "the certificate of port 8443: no key",
    )


@pytest.mark.parametrize(
    ("trust", "authority"), [("", "the system's certificate authorities"), ("t", "its configured ca.crt")]
)
def test_an_unverified_app_is_told_with_the_authority_that_was_asked(trust, authority):
    port = PortSnapshot(8443, "tcp", "always", "probe", (), upstream_trust=trust)
    assert authority in failures.unverified(port, "app.test", "why").text
