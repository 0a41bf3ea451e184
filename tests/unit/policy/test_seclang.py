"""Custom rules in SecLang: what is taken, in which form, and what is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.model.errors import ConfigurationError
from sidestep.policy.seclang import (
    MAX_TEXT,
    OPERATORS,
    TRANSFORMATIONS,
    VARIABLES,
    custom_rules,
    place_and_number,
    rule_id,
)

LINE = re.compile(r'Sec(?:Action "[^"]*"|Rule [^ "]+ "(?:[^"\\]|\\.)*" "[^"]*")')


ENDS = "log,rev:'@SECRET@'"
"""What each rule gets."""
NAMED = f"{ENDS},msg:'custom rule'"
SCORE = "setvar:'tx.anomaly_score_pl1=+5'"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('SecAction "phase:1,id:5,nolog,pass"', f'SecAction "id:10300005,phase:1,pass,{NAMED}"'),
        (
            'SecRule ARGS:a|!ARGS:b|&ARGS "@streq x" \\\n  "id:1, phase:2,deny, t:none,t:lowercase,msg:\'no x\'"',
            (
                f'SecRule ARGS:a|!ARGS:b|&ARGS "@streq x" '
                f"\"id:10300001,phase:2,deny,status:403,t:none,t:lowercase,msg:'no x',{ENDS}\""
            ),
        ),
        (
            '\tSecRule REQUEST_URI "!^/a\\"b" "id:2"',
            f'SecRule REQUEST_URI "!@rx ^/a\\"b" "id:10300002,phase:2,pass,{NAMED}"',
        ),
        (
            'SecRule ARGS "@detectSQLi" "id:3,block,tag:a/b,severity:2,setvar:tx.anomaly_score_pl1=+5,ver:x,logdata:a"',
            f"SecRule ARGS \"@detectSQLi\" \"id:10300003,block,tag:'a/b',severity:'2',{SCORE},phase:2,{NAMED}\"",
        ),
    ],
    ids=["action", "variables", "a regex without a name", "what has no effect is left out"],
)
def test_a_rule_is_written_anew(text, line):
    assert custom_rules(text).render(3) == line + "\n"


@given(st.integers(0, 15), st.integers(1, 99_999))
def test_a_loaded_id_says_whose_rule_it_is(place, number):
    assert place_and_number(rule_id(place, number)) == (place, number)


def test_ids_of_other_rules_are_nobodys():
    assert place_and_number(942_100) is None


def test_a_chain_has_its_actions_at_its_first_rule():
    text = 'SecRule ARGS "@rx a" "id:1,deny,chain"\nSecRule REQUEST_METHOD "@streq GET"\nSecAction "id:2"'
    read = custom_rules(text)
    assert read.render(0).splitlines()[1] == 'SecRule REQUEST_METHOD "@streq GET" ""'
    assert (read.regexes, [number for number, _ in read.names]) == (("a",), [1, 2])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            'SecRule RESPONSE_HEADERS:Location "@rx ^https?://(?!shop)" "id:1,phase:3,deny"',
            f'SecRule RESPONSE_HEADERS:Location "@rx ^https?://(?!shop)" "id:10300001,phase:3,deny,status:403,{NAMED}"',
        ),
        (
            'SecRule RESPONSE_BODY "@contains x" "id:1,phase:4,block,setvar:tx.outbound_anomaly_score_pl1=+4"',
            (
                'SecRule RESPONSE_BODY "@contains x" '
                f"\"id:10300001,phase:4,block,setvar:'tx.outbound_anomaly_score_pl1=+4',{NAMED}\""
            ),
        ),
        (
            'SecAction "id:1,phase:response,setvar:tx.custom_a=1"',
            f"SecAction \"id:10300001,phase:response,setvar:'tx.custom_a=1',pass,{NAMED}\"",
        ),
    ],
    ids=["head", "body", "action"],
)
def test_a_rule_about_the_response_is_apart(text, line):
    read = custom_rules(text)
    assert (read.render(3), read.render_responses(3)) == ("", line + "\n")


def test_a_chain_about_the_response_is_as_a_whole():
    read = custom_rules('SecRule RESPONSE_STATUS "@eq 500" "id:1,phase:4,deny,chain"\nSecRule RESPONSE_BODY "@rx a"')
    assert read.render(0) == ""
    assert read.render_responses(0).splitlines()[1] == 'SecRule RESPONSE_BODY "@rx a" ""'
    assert read.regexes == ("a",)


def test_comments_and_empty_lines_are_left_out():
    assert custom_rules("# SecRuleEngine Off\n\n   \n").render(0) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("SecRuleEngine Off", "directive 'SecRuleEngine' is not allowed"),
        ("secrule ARGS a id:1", "directive 'secrule' is not allowed"),
        ("Include /etc/passwd", "directive 'Include' is not allowed"),
        ("SecRuleRemoveById 942100", "directive 'SecRuleRemoveById' is not allowed"),
        ("SecRuleScript /x.lua", "is not allowed"),
        ("SecRule ARGS", "does not have the parts"),
        ('SecRule ARGS "a"', "does not have the parts"),
        ('SecRule ARGS "a" "id:1" "b"', "does not have the parts"),
        ('SecRule ENV "a" "id:1"', "variable 'ENV' is not allowed"),
        ('SecRule IP:x "a" "id:1"', "variable 'IP:x' is not allowed"),
        ('SecRule args "a" "id:1"', "variable 'args' is not allowed"),
        ('SecRule ARGS "@inspectFile /x" "id:1"', "operator @inspectFile is not allowed"),
        ('SecRule ARGS "@pmFromFile x" "id:1"', "operator @pmFromFile is not allowed"),
        ('SecRule ARGS "@rbl x" "id:1"', "operator @rbl is not allowed"),
        ('SecRule ARGS "@streq %{ARGS.a}" "id:1"', "operator with a variable"),
        ('SecRule ARGS "@rx a\\\\" "id:1"', "a backslash at its end"),
        ('SecRule ARGS "a" "id:1,exec:/x"', "action exec:/x is not allowed"),
        ('SecRule ARGS "a" "id:1,ctl:ruleEngine=Off"', "action ctl:ruleEngine=Off is not allowed"),
        ('SecRule ARGS "a" "id:1,allow"', "action allow is not allowed"),
        ('SecRule ARGS "a" "id:1,skipAfter:X"', "action skipAfter:X is not allowed"),
        ('SecRule ARGS "a" "id:1,setvar:tx.anomaly_score_pl1=-5"', "is not allowed"),
        ('SecRule ARGS "a" "id:1,setvar:tx.paranoia_level=0"', "is not allowed"),
        ('SecRule ARGS "a" "id:1,phase:5"', "action phase:5 is not allowed"),
        ('SecRule RESPONSE_BODY "a" "id:1"', "the variable 'RESPONSE_BODY' needs phase 4"),
        ('SecRule RESPONSE_BODY "a" "id:1,phase:3"', "the variable 'RESPONSE_BODY' needs phase 4"),
        ('SecRule RESPONSE_STATUS "a" "id:1,phase:2"', "the variable 'RESPONSE_STATUS' needs phase 3 or 4"),
        ('SecRule ARGS "a" "id:1,phase:4"', "the variable 'ARGS' needs phase 1 or 2"),
        ('SecRule REQUEST_HEADERS:Host "a" "id:1,phase:3"', "the variable 'REQUEST_HEADERS:Host' needs phase 1 or 2"),
        ('SecRule ARGS "a" "id:1,chain"\nSecRule RESPONSE_BODY "b"', "'RESPONSE_BODY' needs phase 4"),
        ('SecRule ARGS_GET "a" "id:1,phase:2,phase:4"', "action phase:4 is not allowed"),
        ('SecAction "id:1,phase:4,setvar:tx.anomaly_score_pl1=+5"', "is not allowed"),
        ('SecAction "id:1,phase:2,setvar:tx.outbound_anomaly_score_pl1=+5"', "is not allowed"),
        ('SecRule ARGS "a" "id:1,t:unknown"', "action t:unknown is not allowed"),
        ('SecRule ARGS "a" "id:1,msg:\'%{ARGS}\'"', "is not allowed"),
        ('SecRule ARGS "a" "id:1,msg:\'a"', "no action"),
        ('SecRule ARGS "a" "pass"', "one id from 1 to 99999"),
        ('SecRule ARGS "a" "id:942100"', "one id from 1 to 99999"),
        ('SecRule ARGS "a" "id:0"', "one id from 1 to 99999"),
        ('SecRule ARGS "@SECRET@" "id:1"', "reserved"),
        ('SecRule ARGS "a" "id:x"', "one id from 1 to 99999"),
        ('SecRule ARGS "a" "id:1,id:2"', "one id from 1 to 99999"),
        ('SecRule ARGS "a" "id:1"\nSecRule ARGS "a" "id:1"', "line 2: the id 1 is that of an earlier rule"),
        ('SecRule ARGS "a" "id:1,chain"', "a chain that does not go on"),
        ('SecRule ARGS "a" "id:1,chain"\nSecRule ARGS "b" "deny"', "goes on a chain has no id"),
        ('SecRule ARGS "a" "id:1,chain"\nSecAction "id:2"', "does not have the parts"),
        ('SecRule ARGS "a', "quotation mark that is not closed"),
        ('SecRule ARGS "ä" "id:1"', "not printable ASCII"),
        ('SecRule ARGS "a\0" "id:1"', "not printable ASCII"),
        ("#" * (MAX_TEXT + 1), "more than"),
        ("\n".join(f'SecAction "id:{number}"' for number in range(1, 300)), "more than 256 rules"),
    ],
)
def test_anything_else_is_refused(text, reason):
    with pytest.raises(ConfigurationError, match=re.escape(reason)):
        custom_rules(text)


_ACTIONS = st.sampled_from(("id:1", "id:2", "deny", "chain", "t:none", "msg:'x'", "ctl:x", "'", ",", "\\", '"', "log"))
_PIECES = st.sampled_from(
    (
        "SecRule", "SecAction", " ", "\t", "\n", "\\\n", '"', "\\", "ARGS", "RESPONSE_BODY", "@rx a", "|", "id:1",
        "id:1,phase:4", "%{x}",
    )
)  # fmt: skip


@given(st.lists(st.one_of(_ACTIONS, _PIECES, st.text(max_size=3)), max_size=30).map("".join))
def test_whatever_is_taken_has_the_form_that_is_written(text):
    try:
        read = custom_rules(text)
    except ConfigurationError:
        return
    assert all(LINE.fullmatch(line) for line in (read.render(1) + read.render_responses(1)).splitlines())


@given(
    st.sampled_from(sorted(VARIABLES)), st.sampled_from(sorted(OPERATORS)), st.sampled_from(sorted(TRANSFORMATIONS)),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
)  # fmt: skip
def test_rules_of_allowed_parts_keep_their_line(variable, operator, transformation, argument):
    quoted = argument.replace("\\", "").replace('"', '\\"').replace("%{", "")
    read = custom_rules(f'SecRule {variable} "@{operator} {quoted}" "id:1,deny,t:{transformation}"')
    assert len(read.render(1).splitlines()) == 1
    assert LINE.fullmatch(read.render(1).rstrip("\n"))
