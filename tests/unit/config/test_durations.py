import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.config.durations import format_duration, parse_duration
from sidestep.model.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("2m", 120),
        ("1h", 3600),
        ("1.5s", 1.5),
        ("0.25h", 900),
        ("1m1s1ms", 61.001),
        ("1h5ms", 3600.005),
        ("007s", 7),
    ],
)
def test_duration(text, seconds):
    assert parse_duration(text, minimum=0, maximum=10_000) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "s",
        "ms",
        "10 s",
        " 10s",
        "10s ",
        "10s\n",
        "-1s",
        "+1s",
        "1_0s",
        "1,5s",
        ".5s",
        "5.s",
        "1e3s",
        "30s1m",
        "1s1s",
        "10S",
        "10sec",
        "1d",
        "\u0661\u0660s",
        "10µs",
        "infs",
        "nans",
        "1.2.3s",
        "9" * 50 + "s",
        "1h" * 40,
    ],
)
def test_what_is_no_duration(text):
    with pytest.raises(ConfigurationError, match="not a duration"):
        parse_duration(text, minimum=0, maximum=1e12)


@pytest.mark.parametrize("text", ["0s", "999ms", "1h1ms", "999999999h"])
def test_bounds_are_told(text):
    with pytest.raises(ConfigurationError, match="must be between 1s and 1h") as caught:
        parse_duration(text, minimum=1, maximum=3600, subject="drain timeout")
    assert (caught.value.subject, caught.value.value) == ("drain timeout", text)


def test_bounds_are_inclusive():
    assert parse_duration("1s", minimum=1, maximum=3600) == 1
    assert parse_duration("1h", minimum=1, maximum=3600) == 3600


@given(st.integers(min_value=1, max_value=10**9))
def test_format_is_read_back(milliseconds):
    text = format_duration(milliseconds / 1000)
    assert parse_duration(text, minimum=0, maximum=1e9) == pytest.approx(milliseconds / 1000)


def test_format():
    assert format_duration(90) == "1m30s"
    assert format_duration(0.5) == "500ms"
    assert format_duration(0) == "0s"


@given(st.text(alphabet="0123456789.hms -", max_size=40))
def test_only_the_documented_error(text):
    try:
        assert 0 <= parse_duration(text, minimum=0, maximum=1e12) <= 1e12
    except ConfigurationError:
        pass
