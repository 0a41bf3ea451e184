import base64

import pytest

from sidestep.protocols.h2c_upgrade import client_settings

PAYLOAD = b"\x00\x03\x00\x00\x00\x64\x00\x04\x40\x00\x00\x00"


def field(value, name=b"HTTP2-Settings"):
    return (name, value)


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ([field(b"AAMAAABkAARAAAAA")], PAYLOAD),
        ([field(b"AAMAAABk"), (b"x", b"y")], PAYLOAD[:6]),
        ([field(b"AAMAAABk", b"http2-settings")], PAYLOAD[:6]),
        ([field(b"")], b""),
        ([], None),
        ([field(b"AAMAAABk"), field(b"AAMAAABk")], None),
        ([field(b"AAMAAAB")], None),  # five bytes and a bit
        ([field(b"AAMAAABkA")], None),  # no base64 is that long
        ([field(b"AAMA AABk")], None),
        ([field(b"AAMA+ABk")], None),  # not the URL alphabet
        ([field(b"A" * 2000)], None),
        ([field(b"\xff")], None),
    ],
)
def test_settings_of_an_upgrade(fields, settings):
    assert client_settings(fields) == settings


def test_padding_is_forgiven():
    assert client_settings([field(base64.urlsafe_b64encode(PAYLOAD[:6] * 2))]) == PAYLOAD[:6] * 2
    assert client_settings([field(b"AAMAAABk==")]) == PAYLOAD[:6]
