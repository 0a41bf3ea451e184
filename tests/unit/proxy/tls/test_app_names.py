"""Names that OpenSSL is not asked to compare."""

from __future__ import annotations

import pytest

from sidestep.proxy.tls.app_names import names_match, openssl_compares


def certificate(*names, ips=(), common=""):
    found = {"subjectAltName": (*(("DNS", name) for name in names), *(("IP Address", ip) for ip in ips))}
    return found | ({"subject": ((("commonName", common),),)} if common else {})


@pytest.mark.parametrize(
    ("held", "name", "is_for"),
    [
        (certificate("a.test"), "a.test", True),
        (certificate("a.test"), "A.TEST.", True),
        (certificate("A.test."), "a.test", True),
        (certificate("a.test"), "b.test", False),
        (certificate("*.test"), "a.test", False),
        (certificate("*.a.test"), "my_app.a.test", True),
        (certificate("*.a.test"), "x.y.a.test", False),
        (certificate("*.a.test"), ".a.test", False),
        (certificate("*.a.test"), "a.test", False),
        (certificate("*.a.test"), "*.a.test", True),
        (certificate("x*.a.test"), "xy.a.test", False),
        (certificate(ips=["10.0.0.1"]), "10.0.0.1", True),
        (certificate(ips=["10.0.0.1"]), "10.0.0.2", False),
        (certificate(ips=["2001:DB8:0:0:0:0:0:1"]), "2001:db8::1", True),
        (certificate("10.0.0.1", common="10.0.0.1"), "10.0.0.1", False),
        (certificate(common="a.test"), "a.test", True),
        (certificate(common="*.a.test"), "x.a.test", True),
        (certificate("b.test", common="a.test"), "a.test", False),
        (certificate(ips=["10.0.0.1"], common="a.test"), "a.test", True),
        ({}, "a.test", False),
    ],
)
def test_names_match(held, name, is_for):
    assert names_match(held, name) is is_for


@pytest.mark.parametrize(
    ("name", "compares"),
    [("a.test", True), ("A-1.Test", True), ("a", True), ("a.test.", False), ("my_app.test", False), (None, False)],
)
def test_openssl_compares(name, compares):
    assert openssl_compares(name) is compares
