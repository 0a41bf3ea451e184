"""Conditions of rules: forms of paths, query parameters, what is known of a connection; needles."""

from ipaddress import ip_address, ip_network
from urllib.parse import unquote_to_bytes

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.inspection import Match, ParameterCondition
from sidestep.policy.inspection_match import (
    MAX_PARAMETERS,
    CompiledMatch,
    ConnectionFacts,
    RequestFacts,
    needle,
    request_text,
    text_of,
)
from sidestep.policy.path_forms import MAX_WORK, normalised, paths_of
from tests.effort import examples

EXACT, REGEX, PRESENT = HeaderTest.EXACT, HeaderTest.REGEX, HeaderTest.PRESENT
EQUAL, PREFIX = PathTest.EQUAL, PathTest.PREFIX


def paths(*conditions):
    return Match(Filter(paths=tuple(PathCondition(test, value) for test, value in conditions)))


def holds(match, target=b"/", *, method=b"GET", fields=(), of_exception=False):
    compiled = CompiledMatch(match, of_exception=of_exception, of_response=False)
    return compiled.request(RequestFacts(method, target, fields))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/a/b", b"/a/b"),
        (b"/a//b", b"/a/b"),
        (b"//a", b"/a"),
        (b"/a/./b", b"/a/b"),
        (b"/a/../b", b"/b"),
        (b"/../../b", b"/b"),
        (b"/a/..", b"/"),
        (b"/a/.", b"/a/"),
        (b"/a/b/../", b"/a/"),
        (b"/.hidden", b"/.hidden"),
        (b"/a/...", b"/a/..."),
        (b"/a\\..\\b", b"/b"),
        (b"/a\\b", b"/a/b"),
        (b"\\a", b"\\a"),
        (b"*", b"*"),
        (b"", b""),
        (b"/", b"/"),
    ],
)
def test_dot_segments_and_slashes(path, expected):
    assert normalised(path) == expected


@pytest.mark.parametrize(
    "target",
    [
        b"/admin",
        b"/admin/users?x=1",
        b"/%61dmin",
        b"/%61%64%6D%69%6E",
        b"//admin",
        b"/./admin",
        b"/x/../admin",
        b"/x/%2e%2e/admin",
        b"/x%2f..%2fadmin",
        b"/%2e/admin",
        b"/admin%00",
        b"/x\\..\\admin",
        b"/x%5C..%5cadmin",
        b"/\\admin",
    ],
)
def test_no_encoding_leads_around_a_path(target):
    assert holds(paths((PREFIX, "/admin")), target)
    assert not holds(paths((PREFIX, "/other")), target)


@pytest.mark.parametrize(
    "target",
    [
        b"/x\\y/../admin",  # nginx, Go, Python: a backslash is part of a name
        b"/x%5cy/../admin",
        b"//other.test/admin",  # Node's `new URL`, Python's urlsplit: behind an authority
        b"//other\\y/admin",
        b"/\\other.test/admin",
        b"///other.test/admin",
        b"/x%2fy/../admin",  # normalised before it is decoded
        b"/x/%2e%2e/%61dmin%2f",
        b"/x/../admin//..",  # nginx with `merge_slashes off`
        b"//admin//..",  # Python's http.server: slashes at the beginning are one
        b"/x/..;/admin",  # servlet containers: without parameters
        b"/;a=b/admin",
        b"/x/.;y/../;z/admin",
        b"/x\\y/..%2f/%61dmin",
        b"https://app.test/admin",  # Go takes it for a path in HTTP/2
        b"http://app.test//x/../admin",
        b"/x/../admin#/../..",  # nginx cuts a fragment
    ],
)
def test_no_order_of_decoding_and_normalising_leads_around_a_path(target):
    assert holds(paths((PREFIX, "/admin")), target)
    sought = needle(paths((PREFIX, "/admin")), of_response=False)
    assert found(sought, request_text(target, ())[0])


@pytest.mark.parametrize("target", [b"/%2561dmin", b"/x?/admin", b"/x/admin", b"/Admin", b"/adm", b"/x?u=/../admin"])
def test_other_paths(target):
    assert not holds(paths((PREFIX, "/admin")), target)


def test_an_exception_wants_every_form_of_a_path():
    public = paths((PREFIX, "/public/"))
    assert holds(public, b"/public/a", of_exception=True)
    assert not holds(public, b"/public/../admin", of_exception=True)
    assert not holds(public, b"/public/%2e%2e/admin", of_exception=True)
    assert holds(public, b"/public/%61", of_exception=True)


def test_equal_and_regex():
    assert holds(paths((EQUAL, "/a")), b"/a?x")
    assert not holds(paths((EQUAL, "/a")), b"/a/")
    assert holds(paths((PathTest.REGEX, "^/v[0-9]+/$")), b"/v12/?x")
    assert holds(paths((PathTest.REGEX, "^/v[0-9]+/$")), b"/%76%31/")
    assert not holds(paths((PathTest.REGEX, "^/v[0-9]+/$")), b"/v/")


@pytest.mark.parametrize(
    ("condition", "target", "expected"),
    [
        (ParameterCondition("debug", EXACT, "1"), b"/?debug=1", True),
        (ParameterCondition("debug", EXACT, "1"), b"/?a=2&debug=1&b", True),
        (ParameterCondition("debug", EXACT, "1"), b"/?debug=2&debug=1", True),
        (ParameterCondition("debug", EXACT, "1"), b"/?%64ebug=%31", True),
        (ParameterCondition("debug", EXACT, "1"), b"/?xdebug=1", False),
        (ParameterCondition("debug", EXACT, "1"), b"/debug=1", False),
        (ParameterCondition("debug", PRESENT), b"/?debug", True),
        (ParameterCondition("debug", PRESENT), b"/?a=debug", False),
        (ParameterCondition("q", REGEX, r"(?i)union\s+select"), b"/?q=1+UNION+%73elect", True),
        (ParameterCondition("q", REGEX, "%41"), b"/?q=%41", True),
        (ParameterCondition("a b", EXACT, "c d"), b"/?a+b=c%20d", True),
        (ParameterCondition("a+b", EXACT, ""), b"/?a%2Bb=", True),
        (ParameterCondition("é", EXACT, "ü"), "/?é=ü".encode(), True),
        (ParameterCondition("é", EXACT, "ü"), b"/?%C3%A9=%c3%bc", True),
    ],
)
def test_query_parameters(condition, target, expected):
    assert holds(Match(parameters=(condition,)), target) is expected
    sought = needle(Match(parameters=(condition,)), of_response=False)
    assert not expected or found(sought, request_text(target, ())[0])


def test_more_parameters_than_are_looked_at_are_told():
    condition = Match(parameters=(ParameterCondition("x", PRESENT),))
    facts = RequestFacts(b"GET", b"/?" + b"a&" * MAX_PARAMETERS + b"x", ())
    assert not CompiledMatch(condition, of_exception=False, of_response=False).request(facts)
    assert facts.too_many_parameters
    assert not RequestFacts(b"GET", b"/?" + b"a&" * (MAX_PARAMETERS - 1) + b"x", ()).too_many_parameters


def test_semicolons_separate_parameters_too():
    for target in (b"/?x=1;debug=1", b"/?debug=1;x", b"/?a&x;debug=1&b"):
        for test in (EXACT, PRESENT):
            match = Match(parameters=(ParameterCondition("debug", test, "1"),))
            assert holds(match, target)
            assert found(needle(match, of_response=False), request_text(target, ())[0])
    assert holds(Match(parameters=(ParameterCondition("a", EXACT, "b;c"),)), b"/?a=b;c")


def test_an_exception_wants_every_parameter_and_field_of_a_name():
    safe = Match(parameters=(ParameterCondition("mode", EXACT, "safe"),))
    assert holds(safe, b"/?mode=safe", of_exception=True)
    assert not holds(safe, b"/?mode=safe&mode=other", of_exception=True)
    assert holds(safe, b"/?mode=safe&mode=other")
    assert not holds(safe, b"/", of_exception=True)
    inside = Match(Filter((HeaderCondition("x-inside", EXACT, "1"),)))
    assert holds(inside, fields=((b"x-inside", b"1"),), of_exception=True)
    assert not holds(inside, fields=((b"x-inside", b"1"), (b"x_inside", b"0")), of_exception=True)
    assert not holds(inside, of_exception=True)


@pytest.mark.parametrize("host", [b"inner.test", b"INNER.test", b"inner.test:8443", b"inner.test.", b"Inner.test.:1"])
def test_a_host_is_what_servers_choose_by_it(host):
    match = Match(Filter((HeaderCondition("host", EXACT, "inner.test"),)))
    assert holds(match, fields=((b"host", host),))
    assert found(needle(match, of_response=False), request_text(b"/", ((b"host", host),))[0])
    assert holds(match, fields=((b"host", host),), of_exception=True) is (host == b"inner.test")
    assert not holds(match, fields=((b"host", b"x" + host),))
    assert not holds(match, fields=((b"x-host", host),))
    with_port = Match(Filter((HeaderCondition("host", EXACT, "inner.test:8443"),)))
    assert holds(with_port, fields=((b"host", b"Inner.test:8443"),))


@pytest.mark.parametrize("name", [b"x-my-role", b"x_my_role", b"x-my_role"])
def test_underscores_lead_around_no_header(name):
    match = Match(Filter((HeaderCondition("x-my-role", EXACT, "admin"),)))
    assert holds(match, fields=((name, b"admin"),))
    assert found(needle(match, of_response=False), request_text(b"/", ((name, b"admin"),))[0])


@pytest.mark.parametrize(
    "path",
    [
        b"/." * 30_000,
        b"/;a%2f\\%5c.." * 1_000,
        b"//" + b"/a;b%2f\\%5c%2e%2e" * 200,
    ],
)
def test_a_path_of_too_many_forms_has_its_usual_ones(path):
    forms, is_complete = paths_of(path)
    assert not is_complete
    assert {path, normalised(unquote_to_bytes(path))} <= {*forms}
    assert sum(map(len, forms[4:])) <= 2 * MAX_WORK


@pytest.mark.parametrize("path", [b"/a%20b" + b"/abc" * 5_000, b"/" + b"%61" * 20_000, b"/a" * 30_000])
def test_a_long_path_is_no_reason_for_forms(path):
    assert paths_of(path)[1]


def test_methods_and_headers():
    match = Match(Filter((HeaderCondition("x-a", REGEX, "^b+$"), HeaderCondition("x-b", PRESENT)), ("GET", "PUT")))
    fields = ((b"x-a", b"c"), (b"x-a", b"bb"), (b"x-b", b""))
    assert holds(match, fields=fields)
    assert holds(match, method=b"PUT", fields=fields)
    assert not holds(match, method=b"POST", fields=fields)
    assert not holds(match, fields=fields[:2])
    assert not holds(match, fields=fields[::2])


def test_headers_of_a_rule_for_responses_are_those_of_the_response():
    match = Match(Filter((HeaderCondition("x-a", EXACT, "b"),), paths=(PathCondition(PREFIX, "/a"),)))
    compiled = CompiledMatch(match, of_exception=False, of_response=True)
    assert compiled.request(RequestFacts(b"GET", b"/a", ()))
    assert not compiled.request(RequestFacts(b"GET", b"/b", ()))
    assert compiled.response(((b"x-a", b"b"),))
    assert not compiled.response(((b"x-a", b"c"),))
    assert (compiled.on_connection, compiled.on_request, compiled.on_response) == (False, True, True)


@pytest.mark.parametrize(
    ("match", "facts", "expected"),
    [
        (Match(sources=(ip_network("10.0.0.0/8"),)), ConnectionFacts(ip_address("10.1.2.3")), True),
        (Match(sources=(ip_network("10.0.0.0/8"),)), ConnectionFacts(ip_address("::ffff:10.1.2.3")), True),
        (Match(sources=(ip_network("10.0.0.0/8"),)), ConnectionFacts(ip_address("11.1.2.3")), False),
        (Match(sources=(ip_network("10.0.0.0/8"),)), ConnectionFacts(ip_address("fd00::1")), False),
        (Match(sources=(ip_network("10.0.0.0/8"),)), ConnectionFacts(), False),
        (Match(server_names=("a.test",)), ConnectionFacts(server_name="A.test."), True),
        (Match(server_names=("a.test",)), ConnectionFacts(server_name="b.a.test"), False),
        (Match(server_names=("*.a.test",)), ConnectionFacts(server_name="c.b.a.test"), True),
        (Match(server_names=("*.a.test",)), ConnectionFacts(server_name="a.test"), False),
        (Match(server_names=("a.test",)), ConnectionFacts(), False),
        (Match(client_certificates=("*",)), ConnectionFacts(certificate_names=("CN=ada",)), True),
        (Match(client_certificates=("*",)), ConnectionFacts(), False),
        (Match(client_certificates=("spiffe://a/*",)), ConnectionFacts(certificate_names=("x", "spiffe://a/b")), True),
        (Match(client_certificates=("spiffe://a/",)), ConnectionFacts(certificate_names=("spiffe://a/b",)), False),
        (Match(), ConnectionFacts(), True),
    ],
)
def test_connections(match, facts, expected):
    assert CompiledMatch(match, of_exception=False, of_response=False).connection(facts) is expected


def found(sought, text):
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile(b"(?m:" + sought + b")", options).search(text) is not None


def test_needles():
    assert needle(Match(), of_response=False) is None
    assert needle(Match(Filter(methods=("GET",))), of_response=False) is None
    assert needle(paths((PREFIX, "/a"), (PathTest.REGEX, "b")), of_response=False) is None
    headers = Match(Filter((HeaderCondition("x-a", EXACT, "b c"),)))
    assert needle(headers, of_response=True) is None
    assert found(needle(headers, of_response=False), b"/\nx-a: b c")
    assert not found(needle(headers, of_response=False), b"/\nx-a: b cd")
    assert not found(needle(headers, of_response=False), b"/\nzx-a: b c")


_TARGETS = st.lists(
    st.sampled_from(
        [b"/", b"a", b"%61", b"..", b".", b"%2e", b"//", b"%2F", b"\\", b"?", b"&", b"=", b"+", b"%", b"\xc3\xa9"]
    ),
    max_size=10,
).map(lambda parts: b"/" + b"".join(parts))
_VALUES = st.text(st.sampled_from("/a.é+*("), min_size=1, max_size=4)
_MATCHES = st.builds(
    Match,
    st.builds(
        Filter,
        headers=st.lists(
            st.builds(HeaderCondition, st.sampled_from(["x-a", "x-b"]), st.sampled_from([EXACT, PRESENT]), _VALUES),
            max_size=2,
        ).map(tuple),
        paths=st.lists(
            st.builds(PathCondition, st.sampled_from([EQUAL, PREFIX]), _VALUES.map("/".__add__)), max_size=2
        ).map(tuple),
    ),
    st.lists(st.builds(ParameterCondition, _VALUES, st.just(PRESENT)), max_size=1).map(tuple),
)
_FIELDS = st.lists(st.tuples(st.sampled_from([b"x-a", b"x-b"]), _VALUES.map(str.encode)), max_size=3)


@settings(max_examples=examples())
@given(_MATCHES, _TARGETS, _FIELDS)
def test_whoever_fulfils_a_match_has_its_needle(match, target, fields):
    sought = needle(match, of_response=False)
    if sought is not None and holds(match, target, fields=fields):
        assert found(sought, request_text(target, fields)[0])


@settings(max_examples=examples())
@given(_TARGETS, _FIELDS)
def test_the_text_has_every_form_of_the_target_and_every_field(target, fields):
    lines, _, _ = request_text(target, fields)
    path = target.partition(b"?")[0]
    assert lines.startswith(target)
    for form in paths_of(path)[0]:
        assert b"\n" + form in b"\n" + lines
    assert lines.endswith(text_of(fields))
