"""Client contexts: authorities of clusters are accepted on every Python, and there is one place that makes them."""

import ssl
from pathlib import Path

import pytest

import sidestep
from sidestep.aio.client_tls import default_client_context
from tests.harness.authority import Authority


def handshake(client_context, server_context, name):
    """Carry a handshake between two memory BIOs; raises what the client raises."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(5):
        done = True
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                done = False
        if done:
            return client.getpeercert()
    raise AssertionError("the handshake does not end")


@pytest.fixture
def server(tmp_path):
    authority = Authority()  # without a keyUsage, as many private ones
    folder = authority.issue("api.example").write(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context, folder / "ca.crt"


def test_an_authority_without_a_key_usage_is_accepted(server):
    context, ca = server
    assert handshake(default_client_context(cafile=ca), context, "api.example")
    assert handshake(default_client_context(cadata=ca.read_text()), context, "api.example")


def test_another_name_and_another_authority_are_refused(server, tmp_path):
    context, ca = server
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(default_client_context(cafile=ca), context, "other.example")
    other = Authority().issue("x.example").write(tmp_path / "other") / "ca.crt"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(default_client_context(cafile=other), context, "api.example")


def test_strictness_does_not_depend_on_the_python(monkeypatch):
    """Python 3.13 sets the flag by itself; older ones are made to."""
    made = ssl.create_default_context  # noqa: TID251 - what is looked at

    def strict(*arguments, **options):
        context = made(*arguments, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    context = default_client_context()
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_there_is_one_place_that_makes_them():
    root = Path(sidestep.__file__).parent
    found = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if "create_default_context(" in path.read_text()
    }
    assert found == {"aio/client_tls.py"}
