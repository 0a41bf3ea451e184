"""Suricata rules of policies: what is read, what is refused, and what Suricata gets."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.ids.rules import FORBIDDEN, MAX_RULE, MAX_RULES, MAX_TEXT, parse, render_all
from sidestep.model.errors import ConfigurationError
from tests.effort import examples

RULE = 'alert http any any -> any any (msg:"a"; http.uri; content:"/x"; sid:1;)'


def rule(options="", sid=1):
    return f'alert http any any -> any any (msg:"a"; {options}sid:{sid};)'


def test_a_rule_is_given_on_with_the_number_of_its_policy():
    found = parse(RULE)
    assert [each.sid for each in found.rules] == [1]
    assert found.render(3) == 'alert http any any -> any any (msg:"a"; http.uri; content:"/x"; sid:1; gid:3;)\n'


def test_comments_empty_lines_and_continued_lines():
    text = f'# no rule\n\n  \n{RULE}\nalert http any any -> any any \\\n  (msg:"b"; \\\n  sid:2;)\n'
    found = parse(text)
    assert [each.sid for each in found.rules] == [1, 2]
    assert found.rules[1].header == "http any any -> any any"


def test_semicolons_and_parentheses_in_a_value():
    value = r'"a\;b \"c\" (d) :e"'
    [found] = parse(rule(f"content:{value}; ")).rules
    assert ("content", value) in found.options
    assert value in found.render(1)


def test_policies_have_their_own_flowbits():
    text = rule("flowbits:set,login; flowbits:isset, a | b; flowbits:noalert; ")
    line = parse(text).render(2)
    assert "flowbits:set,p2.login;" in line
    assert "flowbits:isset,p2.a|p2.b;" in line
    assert "flowbits:noalert;" in line


def test_two_policies_may_use_the_same_number():
    rendered = render_all([parse(RULE), parse(RULE.replace("/x", "/y"))])
    assert [line.rpartition("gid:")[2] for line in rendered.splitlines()] == ["1;)", "2;)"]


def test_another_text_has_another_digest():
    assert parse(RULE).digest == parse(RULE).digest != parse(RULE + "\n").digest


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no rule"),
        ("# nothing", "there is no rule"),
        ("pass http any any -> any any (sid:1;)", "line 1: the action pass is not possible"),
        ("drop http any any -> any any (sid:1;)", "the action drop"),
        ("alert http any any -> any any", "line 1: no rule"),
        (f"{RULE}\nnonsense", "line 2: no rule"),
        ("alert http any any -> any any (sid:1)", "do not end in ';'"),
        ('alert http any any -> any any (msg:"a";)', "exactly one sid"),
        (rule("sid:2; "), "exactly one sid"),
        (rule(sid="x"), "exactly one sid"),
        (rule(sid=0), "exactly one sid"),
        (f"{RULE}\n{RULE}", "line 2: sid 1 is that of the rule in line 1"),
        (rule('content:"\x07"; '), "cannot be printed"),
        (rule(f'content:"{"a" * MAX_RULE}"; '), "more than 8192 characters"),
        ("a" * (MAX_TEXT + 1), "more than 1024 KiB"),
        ("\n".join(rule(sid=each) for each in range(1, MAX_RULES + 2)), f"line {MAX_RULES + 1}: more than"),
    ],
)
def test_what_is_refused(text, reason):
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert reason in caught.value.reason


@pytest.mark.parametrize("keyword", sorted(FORBIDDEN))
def test_keywords_that_reach_further_than_a_rule(keyword):
    for option in (f"{keyword}; ", f"{keyword}:a; ", f" {keyword.upper()} : a; "):
        with pytest.raises(ConfigurationError, match="not possible here"):
            parse(rule(option))
    assert parse(rule(f'content:"{keyword}:a"; '))


@settings(max_examples=examples(300), deadline=None)
@given(st.text(max_size=200) | st.text(alphabet='alert http(any) -> ;:\\"\n#sid1', max_size=200))
def test_anything_is_rules_or_an_error(text):
    try:
        found = parse(text)
    except ConfigurationError:
        return
    for line in found.render(1).splitlines():
        assert line.startswith("alert ")
        assert line.endswith("gid:1;)")
        assert len(parse(line.replace(" gid:1;", "")).rules) == 1
