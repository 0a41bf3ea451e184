"""Times of certificates; reading one imports nothing, because a sandboxed proxy can import nothing."""

import subprocess
import sys

import pytest

from sidestep.proxy.tls.certificate_time import certificate_seconds

IMPORTS_NOTHING = """
import sys
from sidestep.proxy.tls.certificate_time import certificate_seconds
before = set(sys.modules)
assert certificate_seconds("Jan  5 09:34:43 2030 GMT") == 1893836083
assert set(sys.modules) == before, set(sys.modules) - before
"""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Jan  1 00:00:00 1970 GMT", 0),
        ("Jan  5 09:34:43 2030 GMT", 1893836083),
        ("Dec 31 23:59:59 9999 GMT", 253402300799),
        ("yesterday", None),
        ("", None),
        ("Foo  5 09:34:43 2030 GMT", None),
    ],
)
def test_what_a_text_says(text, seconds):
    assert certificate_seconds(text) == seconds


def test_reading_one_imports_nothing():
    subprocess.run([sys.executable, "-c", IMPORTS_NOTHING], check=True)
