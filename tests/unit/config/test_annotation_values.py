"""The values of annotations: what is taken, and why the rest is not."""

import pytest

from sidestep.config.annotation_values import (
    MAX_PATH,
    parse_folder,
    parse_probe_timeout,
    parse_secret_name,
    parse_switch,
)
from sidestep.model.errors import ConfigurationError


@pytest.mark.parametrize("value", ["/", "/etc/tls", "/etc/tls/", "/ä b", "/" + "x" * (MAX_PATH - 1)])
def test_a_folder_is_an_absolute_path(value):
    assert parse_folder(value) == value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "absolute path"),
        ("etc/tls", "absolute path"),
        ("/etc/../root", "'..'"),
        ("/..", "'..'"),
        ("/etc\n", "characters"),
        ("/\x1b[2J", "characters"),
        ("/\ud800", "characters"),
        ("/" + "x" * MAX_PATH, f"{MAX_PATH + 1} bytes"),
        ("/" + "ä" * (MAX_PATH // 2 + 1), "bytes"),
    ],
)
def test_what_is_no_folder(value, reason):
    with pytest.raises(ConfigurationError, match=reason):
        parse_folder(value)


@pytest.mark.parametrize("value", ["a", "orders-tls", "a.b-c.d", "0", "x" * 253])
def test_the_name_of_a_secret(value):
    assert parse_secret_name(value) == value


@pytest.mark.parametrize("value", ["", "A", "-a", "a-", "a..b", "a_b", "a\n", "x" * 254, "ä"])
def test_what_is_no_name_of_a_secret(value):
    with pytest.raises(ConfigurationError, match="is not the name of a Secret"):
        parse_secret_name(value)


def test_a_secret_is_one_of_the_pods_namespace():
    with pytest.raises(ConfigurationError, match="namespace"):
        parse_secret_name("other/secret")


def test_a_switch():
    assert parse_switch("enabled")
    assert not parse_switch("disabled")
    for value in ("", "true", "Enabled", " enabled"):
        with pytest.raises(ConfigurationError, match="enabled or disabled"):
            parse_switch(value)


def test_a_probe_timeout_has_a_unit_and_bounds():
    assert parse_probe_timeout("1m30s") == 90.0
    assert parse_probe_timeout("10ms") == 0.01
    for value in ("3", "9ms", "11m", ""):
        with pytest.raises(ConfigurationError):
            parse_probe_timeout(value)
