"""Rules of a file whose regular expressions cannot be compiled."""

import pytest

from sidestep.inspector.regexes import Regexes
from sidestep.inspector.rules import unreadable

BROKEN = r"[\s\v-\"a]"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('SecRule ARGS "@rx a\\"b" "id:1,phase:2"', []),
        (f'SecRule ARGS "@rx {BROKEN}" "id:1,phase:2"', [1]),
        (f'SecRule ARGS "!@rx {BROKEN}" \\\n    "id:\'7\',\\\n    phase:2,\\\n    block"', [7]),
        (f'SecRule ARGS "@rx a" "phase:2,id:1,chain"\n    SecRule TX:1 "!@rx {BROKEN}" "t:none"', [1]),
        (f'SecRule ARGS "@rx {BROKEN}" "id:1,chain"\n  SecRule TX:1 "@rx {BROKEN}"\nSecRule A "@rx b" "id:2"', [1]),
        (f'SecRule ARGS "@streq {BROKEN}" "id:1"', []),
        (f'# SecRule ARGS "@rx {BROKEN}" "id:1"', []),
    ],
)
def test_they_are_named_by_the_first_rule_of_their_chain(text, found):
    assert unreadable(text, Regexes()) == found
