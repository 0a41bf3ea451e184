import itertools
import re
import time
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.config.filters import MAX_CONDITIONS, parse_filter
from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.policy import matching
from sidestep.policy.matching import (
    MAX_REGEX_LENGTH,
    MAX_STEPS,
    compile_filter,
    from_rows,
    needle_of,
    normal_form,
    prove,
    to_rows,
)

FIELDS = [
    (b"host", b"orders.shop:8443"),
    (b"user-agent", b"curl/8"),
    (b"x-user", b"bob"),
    (b"x-user", b"alice"),
    (b"accept", b"text/html, */*; q=0.1"),
    (b"x-empty", b""),
    (b"x-name", "Zoé".encode()),
    (b"x-raw", b"\xff\xfe"),
]


def matches(method=b"GET", path=b"/api/orders", fields=FIELDS, **options):
    return compile_filter(parse_filter(**options))(method, path, fields)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("x-user=alice", True),
        ("X-USER=alice", True),
        ("x-user=bob", True),
        ("x-user=ALICE", False),
        ("x-user=ali", False),
        ("x-user=alice,bob", False),
        ("accept=text/html, */*; q=0.1", True),
        ("host=orders.shop:8443", True),
        ("host=orders.shop", False),
        ("x-empty=", True),
        ("x-empty", True),
        ("x-missing", False),
        ("x-missing=", False),
        ("x-user", True),
        ("x-name=Zoé", True),
        ("x-name=~^Zo.$", True),
        ("x-name=~^Zoé+$", True),
        ("x-name=~[é]", True),
        ("x-user=~lic", True),
        ("x-user=~^lic", False),
        ("x-user=~^(alice|bob)$", True),
        ("x-user=~", True),
        ("x-missing=~", False),
        ("x-user=~(?i)^ALICE$", True),
        (r"host=~:8443$", True),
        (r"x-raw=~^\C\C$", True),
        ("x-raw=~^..$", False),
        ("x-raw", True),
    ],
)
def test_header(header, expected):
    assert matches(headers=[header]) is expected


@pytest.mark.parametrize(
    ("options", "path", "expected"),
    [
        ({"path_equal": ["/api/orders"]}, b"/api/orders", True),
        ({"path_equal": ["/api/orders"]}, b"/api/orders/", False),
        ({"path_equal": ["/api/orders"]}, b"/API/orders", False),
        ({"path_equal": ["*"]}, b"*", True),
        ({"path_prefix": ["/api"]}, b"/api", True),
        ({"path_prefix": ["/api"]}, b"/apix", True),
        ({"path_prefix": ["/api/"]}, b"/api", False),
        ({"path_regex": ["^/v[0-9]+/"]}, b"/v12/x", True),
        ({"path_regex": ["^/v[0-9]+/"]}, b"/x/v12/", False),
        ({"path_regex": ["orders"]}, b"/api/orders/1", True),
        ({"path_equal": ["/a%20b"]}, b"/a%20b", True),
        ({"path_equal": ["/a%20b"]}, b"/a b", False),
        ({"path_equal": ["/a"], "path_prefix": ["/b"], "path_regex": ["^/c$"]}, b"/a", True),
        ({"path_equal": ["/a"], "path_prefix": ["/b"], "path_regex": ["^/c$"]}, b"/bb", True),
        ({"path_equal": ["/a"], "path_prefix": ["/b"], "path_regex": ["^/c$"]}, b"/c", True),
        ({"path_equal": ["/a"], "path_prefix": ["/b"], "path_regex": ["^/c$"]}, b"/cc", False),
        ({"path_regex": ["x", "y"]}, b"/y", True),
    ],
)
def test_paths_are_or_ed(options, path, expected):
    assert matches(path=path, **options) is expected


@pytest.mark.parametrize(
    ("method", "expected"), [(b"GET", True), (b"POST", True), (b"get", False), (b"PUT", False), (b"", False)]
)
def test_methods_are_exact(method, expected):
    assert matches(method=method, methods=["GET", "POST"]) is expected


# Every shape of filter answers like this plain reading: headers AND methods AND (paths OR-ed).
_HEADERS = ["x-user=alice", "x-user=eve", "x-empty", "x-missing", "x-user=~^b", "x-user=~^q"]
_METHODS = [[], ["GET"], ["PUT", "POST"]]
_PATHS = [{}, {"path_equal": ["/api/orders"]}, {"path_prefix": ["/no"]}, {"path_regex": ["orders$"]}]


def plain_reading(options):
    def holds(header):
        name, equals, value = header.partition("=")
        values = [text.decode("latin-1") for key, text in FIELDS if key == name.encode()]
        if not equals:
            return bool(values)
        if value.startswith("~"):
            return any(re.search(value[1:], text) for text in values)
        return value in values

    paths = [path == "/api/orders" for path in options.get("path_equal", [])]
    paths += ["/api/orders".startswith(path) for path in options.get("path_prefix", [])]
    paths += [bool(re.search(path, "/api/orders")) for path in options.get("path_regex", [])]
    methods = options["methods"]
    return all(map(holds, options["headers"])) and (not methods or "GET" in methods) and (not paths or any(paths))


def test_every_shape_reads_the_same():
    count = 0
    for size in range(4):
        for headers, methods, paths in itertools.product(itertools.combinations(_HEADERS, size), _METHODS, _PATHS):
            options = {"headers": list(headers), "methods": methods, **paths}
            assert matches(**options) is plain_reading(options), options
            count += 1
    assert count > 400


@given(
    st.binary(max_size=20),
    st.binary(max_size=40),
    st.lists(st.tuples(st.sampled_from([b"a", b"x-user", b""]), st.binary(max_size=20))),
)
def test_closures_never_raise(method, path, fields):
    for options in (
        {"headers": ["x-user=~^[a-zé]+$"]},
        {"headers": ["x-user=alice", "a"], "methods": ["GET"], "path_regex": ["^/.*é$"]},
        {"path_prefix": ["/x"], "headers": ["a"]},
    ):
        assert compile_filter(parse_filter(**options))(method, path, fields) in {True, False}


def test_a_global_filter_says_yes():
    assert compile_filter(Filter())(b"", b"", []) is True


@pytest.mark.parametrize("regex", ["(", "a{1001}", "(?=a)", "[z-a]", "**", "[[:foo:]]", r"\1", "((a{100}){100}){100}"])
def test_an_invalid_regex_is_an_error_that_quotes_it(regex, capfd):
    for options in ({"headers": [f"x=~{regex}"]}, {"path_regex": [regex]}):
        with pytest.raises(ConfigurationError) as caught:
            compile_filter(parse_filter(**options))
        assert caught.value.value == regex
        assert "invalid regex" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_long_regex_is_refused():
    with pytest.raises(ConfigurationError, match="at most"):
        compile_filter(Filter(paths=(PathCondition(PathTest.REGEX, "a" * (MAX_REGEX_LENGTH + 1)),)))


@pytest.mark.parametrize("regex", ["(a+)+$", "(.*a){10}$", "(a|a)*$", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_regexes_stay_linear_on_what_makes_others_explode(regex):
    # A backtracking engine would not come back within the age of the universe.
    compiled = compile_filter(parse_filter(headers=[f"x=~{regex}"]))
    begin = time.monotonic()
    compiled(b"GET", b"/", [(b"x", b"a" * 60_000 + b"!")])
    assert time.monotonic() - begin < 5


def test_text_that_is_not_unicode_is_an_error():
    for wanted in (
        Filter(headers=(HeaderCondition("x", HeaderTest.EXACT, "\udcff"),)),
        Filter(methods=("\udcff",)),
        Filter(paths=(PathCondition(PathTest.REGEX, "\udcff"),)),
    ):
        with pytest.raises(ConfigurationError, match="UTF-8"):
            compile_filter(wanted)


def test_rows_come_back_as_the_same_filter():
    wanted = parse_filter(
        headers=["x-user=alice", "x-id=~^[0-9]+$", "x-debug"],
        methods=["GET", "POST"],
        path_equal=["/a"],
        path_prefix=["/b"],
        path_regex=["c$"],
    )
    rows = to_rows(wanted)
    assert rows[0] == ("header", "exact", "x-user", "alice")
    assert rows[3] == ("method", "exact", "", "GET")
    assert rows[-1] == ("path", "regex", "", "c$")
    assert from_rows(rows) == wanted
    assert from_rows(()) == Filter()


@pytest.mark.parametrize(
    "row",
    [
        ("header", "like", "x", "y"),
        ("header", "exact", "X-User", "y"),
        ("header", "exact", "x y", "y"),
        ("header", "exact", "", "y"),
        ("path", "exact", "", "/"),
        ("path", "equal", "x", "/"),
        ("method", "regex", "", "GET"),
        ("method", "exact", "", "G T"),
        ("body", "exact", "", "x"),
        ("", "", "", ""),
        ("header", "exact", "x", "a" * 5000),
        ("path", "regex", "", "\udcff"),
    ],
)
def test_unknown_rows_are_errors(row):
    with pytest.raises(ConfigurationError):
        from_rows([row])


def test_too_many_conditions_are_refused_from_wherever_they_come():
    rows = [("header", "exact", f"x-{number}", "1") for number in range(MAX_CONDITIONS + 1)]
    with pytest.raises(ConfigurationError, match="at most 32"):
        from_rows(rows)
    with pytest.raises(ConfigurationError, match="at most 32"):
        compile_filter(Filter(methods=tuple(f"M{number}" for number in range(MAX_CONDITIONS + 1))))
    assert from_rows(rows[:-1]).conditions == MAX_CONDITIONS


def test_normal_form_ignores_order():
    one = parse_filter(headers=["a=1", "b=2"], methods=["GET", "POST"])
    other = parse_filter(headers=["B=2", "A=1"], methods=["POST", "GET"])
    assert normal_form(one) == normal_form(other)
    assert normal_form(one) != normal_form(parse_filter(headers=["a=1"], methods=["GET", "POST"]))


# --- regexes that are dear -------------------------------------------------------------------------------------------

DEAR = "(a?){1000}a{1000}"
"""5,000 instructions, and no automaton that fits: 44 microseconds a byte."""


@pytest.mark.alone
@pytest.mark.parametrize(
    ("options", "path", "fields"),
    [
        ({"headers": [f"x-a=~{DEAR}"]}, b"/", [(b"x-a", b"a" * 60_000)]),
        ({"headers": [f"x-a=~{DEAR}"]}, b"/", [(b"x-a", b"a" * 250)] * 240),
        ({"headers": [f"x-{each}=~{DEAR}" for each in range(30)]}, b"/", [(b"x-0", b"a" * 60_000)]),
        ({"path_regex": [DEAR]}, b"/" + b"a" * 60_000, []),
    ],
    ids=["one long value", "many values", "many regexes", "path"],
)
def test_what_regexes_cost_for_one_request_is_bounded(options, path, fields):
    match = compile_filter(parse_filter(**options))
    began = time.process_time()
    match(b"GET", path, fields)
    assert time.process_time() - began < 0.5


def test_a_dear_regex_matches_what_it_has_steps_for():
    match = compile_filter(parse_filter(headers=[f"x-a=~{DEAR}$"]))
    assert match(b"GET", b"/", [(b"x-a", b"a" * 1100)])
    assert not match(b"GET", b"/", [(b"x-a", b"a" * 60_000)])


def test_a_usual_regex_reads_a_whole_head():
    match = compile_filter(parse_filter(headers=["cookie=~(^|; )user=(ada|bob)(;|$)"]))
    assert match(b"GET", b"/", [(b"cookie", b"x" * 60_000 + b"; user=ada")])
    assert MAX_STEPS // 128 >= 64 * 1024


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({}, b""),
        ({"methods": ["GET"]}, b""),
        ({"headers": ["x-dev=me"]}, b"\nx-dev:"),
        ({"headers": ["host=a.test", "x-dev"]}, b"\nx-dev:"),
        ({"headers": ["host=A.test"]}, b"a.test"),
        ({"headers": ["accept", "host=A.test"]}, b"a.test"),
        ({"headers": ["accept"]}, b"\naccept:"),
        ({"headers": ["accept="]}, b"\naccept:"),
        ({"headers": ["cookie=é"]}, b"\ncookie:"),
        ({"headers": ["cookie=~a"]}, b"\ncookie:"),
    ],
)
def test_the_needle_is_in_every_head_that_matches(options, needle):
    assert needle_of(parse_filter(**options)) == needle


def test_a_filter_is_proved_once_and_a_bad_one_never():
    sound = parse_filter(headers=["x-proved-here=~^a+$"])
    before = set(matching._PROVED)
    prove(sound)
    assert len(set(matching._PROVED) - before) == 1
    prove(sound)
    assert len(set(matching._PROVED) - before) == 1
    bad = Filter((HeaderCondition("x-dev", HeaderTest.REGEX, "("),))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="invalid regex"):
            prove(bad)


def test_the_memory_of_proved_filters_is_bounded(monkeypatch):
    monkeypatch.setattr(matching, "MAX_PROVED", 2)
    monkeypatch.setattr(matching, "_PROVED", OrderedDict())
    filters = [parse_filter(headers=[f"x-{number}=a"]) for number in range(4)]
    for wanted in filters:
        prove(wanted)
    assert len(matching._PROVED) == 2


def test_methods_alone_decide():
    assert matches(methods=["GET", "POST"])
    assert not matches(method=b"PUT", methods=["GET", "POST"])


@pytest.mark.parametrize("field", ["value", "name", "path", "method"])
def test_what_is_not_text_is_refused(field):
    surrogate = "\udc80"
    wanted = {
        "value": Filter((HeaderCondition("x-dev", HeaderTest.EXACT, surrogate),)),
        "name": Filter((HeaderCondition(surrogate, HeaderTest.PRESENT, ""),)),
        "path": Filter(paths=(PathCondition(PathTest.EQUAL, surrogate),)),
        "method": Filter(methods=(surrogate,)),
    }[field]
    with pytest.raises(ConfigurationError, match="not valid UTF-8"):
        compile_filter(wanted)
