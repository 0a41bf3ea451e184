"""What of a head is shown."""

import pytest

from sidestep.model.secret_fields import REDACTED, SECRET
from sidestep.policy.redaction import MAX_BYTES, redact


@pytest.mark.parametrize("name", sorted(SECRET))
def test_credentials_are_there_and_not_shown(name):
    assert redact([(b"a", b"1"), (name, b"s3cret"), (b"b", b"2")]) == ((b"a", b"1"), (name, REDACTED), (b"b", b"2"))


def test_the_secret_names_are_those_of_the_design():
    assert {b"authorization", b"cookie", b"set-cookie", b"proxy-authorization"} == SECRET


def test_other_fields_are_shown_as_they_are():
    fields = ((b":path", b"/?token=x"), (b"x-authorization", b"shown"), (b"cookies", b"shown"))
    assert redact(fields) == fields


def test_what_is_shown_is_bounded_by_whole_fields():
    shown = redact([(b"x-%d" % number, b"v" * 996) for number in range(100)])
    assert [name for name, _ in shown] == [b"x-0", b"x-1", b"x-2", b"x-3"]
    assert sum(len(name) + len(value) for name, value in shown) <= MAX_BYTES
