import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.config.filters import MAX_CONDITIONS, MAX_VALUE, describe_filter, parse_filter, parse_header
from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest

EXACT, REGEX, PRESENT = HeaderTest.EXACT, HeaderTest.REGEX, HeaderTest.PRESENT


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("X-User=alice", HeaderCondition("x-user", EXACT, "alice")),
        ("x-user=", HeaderCondition("x-user", EXACT, "")),
        ("x-user", HeaderCondition("x-user", PRESENT)),
        ("x-user=~^a", HeaderCondition("x-user", REGEX, "^a")),
        ("x-user=~", HeaderCondition("x-user", REGEX, "")),
        ("x-user=a=b", HeaderCondition("x-user", EXACT, "a=b")),
        ("x-user=a,b:c", HeaderCondition("x-user", EXACT, "a,b:c")),
        ("x-user=a b", HeaderCondition("x-user", EXACT, "a b")),
        ("Host=shop:8443", HeaderCondition("host", EXACT, "shop:8443")),
        ("!#$%&'*+-.^_`|~9=v", HeaderCondition("!#$%&'*+-.^_`|~9", EXACT, "v")),
        ("x=é", HeaderCondition("x", EXACT, "é")),
        ("x=~ a ", HeaderCondition("x", REGEX, " a ")),
    ],
)
def test_header(text, condition):
    assert parse_header(text) == condition


@pytest.mark.parametrize(
    "options",
    [
        {"headers": [""]},
        {"headers": ["=x"]},
        {"headers": ["x user=1"]},
        {"headers": ["x:1"]},
        {"headers": ["x-üser=1"]},
        {"headers": [":authority=shop"]},
        {"headers": ["x\n=1"]},
        {"headers": ["x=a\r\nb"]},
        {"headers": ["x=a\0"]},
        {"headers": ["x= a"]},
        {"headers": ["x=a\t"]},
        {"headers": ["x=\udcff"]},
        {"headers": ["x=" + "a" * (MAX_VALUE + 1)]},
        {"headers": ["x" * 257]},
        {"methods": [""]},
        {"methods": ["GET,POST"]},
        {"methods": ["G T"]},
        {"methods": ["get"]},
        {"methods": ["Get"]},
        {"path_equal": [""]},
        {"path_equal": ["api"]},
        {"path_equal": ["/api?x=1"]},
        {"path_equal": ["/api#top"]},
        {"path_equal": ["/a b"]},
        {"path_equal": ["/a\n"]},
        {"path_equal": ["http://shop/api"]},
        {"path_prefix": ["*"]},
        {"path_prefix": ["api/"]},
        {"path_regex": ["a" * (MAX_VALUE + 1)]},
        {"path_regex": ["\udcff"]},
    ],
)
def test_what_could_never_match_is_refused(options):
    with pytest.raises(ConfigurationError) as caught:
        parse_filter(**options)
    assert caught.value.subject.startswith("--http-")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_errors_say_what_to_write():
    with pytest.raises(ConfigurationError, match="for :authority write host"):
        parse_header(":authority=x")
    with pytest.raises(ConfigurationError, match="write GET"):
        parse_filter(methods=["get"])
    with pytest.raises(ConfigurationError, match="repeat the option"):
        parse_filter(methods=["GET,POST"])


def test_filter():
    parsed = parse_filter(
        headers=["X-User=alice", "x-user=alice", "x-debug"],
        methods=["GET", "GET", "PURGE"],
        path_equal=["/a", "*"],
        path_prefix=["/b"],
        path_regex=["c$"],
    )
    assert parsed == Filter(
        headers=(HeaderCondition("x-user", EXACT, "alice"), HeaderCondition("x-debug", PRESENT)),
        methods=("GET", "PURGE"),
        paths=(
            PathCondition(PathTest.EQUAL, "/a"),
            PathCondition(PathTest.EQUAL, "*"),
            PathCondition(PathTest.PREFIX, "/b"),
            PathCondition(PathTest.REGEX, "c$"),
        ),
    )
    assert describe_filter(parsed) == (
        "header x-user=alice, header x-debug, method GET or PURGE, path equal /a or equal * or prefix /b or regex c$"
    )


def test_nothing_is_global():
    assert parse_filter().is_global
    assert describe_filter(parse_filter()) == "everything"


def test_limit():
    names = [f"x-{number}" for number in range(MAX_CONDITIONS)]
    assert parse_filter(headers=names).conditions == MAX_CONDITIONS
    with pytest.raises(ConfigurationError, match="33 filter conditions, at most 32"):
        parse_filter(headers=names, methods=["GET"])


@given(st.text(max_size=60))
def test_only_the_documented_error(text):
    for option in ("headers", "methods", "path_equal", "path_prefix", "path_regex"):
        told = ""
        try:
            parse_filter(**{option: [text]})
        except ConfigurationError as error:
            told = str(error)
        assert "\n" not in told
