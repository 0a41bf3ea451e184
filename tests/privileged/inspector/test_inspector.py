"""Real inspectors with libmodsecurity and Debian's Core Rule Set: verdicts, bounds, ends."""

from __future__ import annotations

import os
import select
import time

import msgspec
import pytest

from sidestep.model.waf import MAX_EXEMPTION_BYTES, MAX_EXEMPTIONS, REQUEST_LINE, REQUEST_LINE_OF_CRS
from sidestep.policy.seclang import custom_rules, rule_id
from sidestep.protocols.waf_messages import MAX_BODY, VERSION, Head, Outcome, Part, Question, Ready, Several, Verdict
from sidestep.snapshots.waf import Exemption, Profile
from tests.harness.inspectors import FIELDS, InspectorZygote, form, json_body
from tests.harness.waiting import until

DOCUMENT = '{"name": "R\u00f6sti", "tags": [1, null]}'.encode()
ATTACK = b"/items?id=1%27%20OR%20%271%27=%271%20UNION%20SELECT%201--"


@pytest.fixture(scope="module")
def zygote():
    with InspectorZygote() as made:
        yield made


@pytest.fixture
def inspector(zygote):
    with zygote.spawn() as made:
        assert made.configure().error is None
        yield made


def ended(inspector, within=10.0):
    """Whether the process ends in time."""
    poll = select.poll()
    poll.register(inspector.pidfd, select.POLLIN)
    return bool(poll.poll(within * 1000))


def custom(text, **settings):
    """A profile with custom rules as a policy has them."""
    read = custom_rules(text)
    return Profile(1, 5, 256, custom=read.render(0), regexes=read.regexes, **settings)


def test_the_zygote_tells_what_it_has_loaded(zygote):
    assert zygote.loaded.engine.startswith("ModSecurity v3.0.")
    assert zygote.loaded.names[942100] == "SQL Injection Attack Detected via libinjection"
    assert len(zygote.loaded.names) > 200


def test_the_zygote_has_one_thread(zygote):
    assert len(os.listdir(f"/proc/{zygote.process.pid}/task")) == 1


@pytest.mark.parametrize(
    ("method", "target", "fields", "body"),
    [
        (b"GET", b"/", (), b""),
        (b"GET", b"/items/42?page=3&sort=name", (), b""),
                (b"POST", b"/items", json_body(DOCUMENT), DOCUMENT),
        (b"POST", b"/items", form(b"name=a+b&n=1"), b"name=a+b&n=1"),
    ],
)  # fmt: skip
def test_ordinary_requests_pass(inspector, method, target, fields, body):
    assert inspector.ask(method, target, fields, body) == Verdict(1, Outcome.PASS)


def test_an_attack_is_blocked_with_its_rules_and_score(inspector):
    told = inspector.ask(b"GET", ATTACK)
    assert (told.outcome, told.score) == (Outcome.BLOCK, 10)
    assert {942100, 949110} <= set(told.rules)


@pytest.mark.parametrize("kind", [form, json_body])
def test_an_attack_at_the_end_of_a_long_body_in_several_packets_is_blocked(inspector, kind):
    text = b"x" * 150_000
    body = b"a=" + text + b"&b=1' OR '1'='1" if kind is form else b'{"a":"' + text + b'","b":"1\' OR \'1\'=\'1"}'
    told = inspector.ask(b"POST", b"/", kind(body), body)
    assert told.outcome is Outcome.BLOCK
    assert 942100 in told.rules


def test_requests_of_http2_pass(inspector):
    inspector.question(b"GET", b"/", [(name.lower(), value) for name, value in FIELDS], version="2")
    assert inspector.receive().outcome is Outcome.PASS


def test_profiles_have_their_own_level_threshold_and_exclusions(inspector):
    profiles = (
        Profile(1, 5, 256),
        Profile(1, 100, 256),
        Profile(4, 1000, 256),
        Profile(1, 5, 256, excluded=(942100, 942190)),
    )
    assert inspector.configure(*profiles).error is None
    told = []
    for number in range(4):
        inspector.question(b"GET", ATTACK, FIELDS, profile=number)
        told.append(inspector.receive())
    assert [each.outcome for each in told] == [Outcome.BLOCK, Outcome.PASS, Outcome.PASS, Outcome.PASS]
    assert told[1].score == 10
    assert told[2].score > 10
    assert told[3].rules == ()


def test_a_client_cannot_name_rules_in_what_is_logged_of_it(inspector):
    forged = b"%22]%20[file%20%22x%22]%20[line%20%221%22]%20[id%20%22941100%22]%20[rev%20%22%22]%20[msg%20%22x"
    told = inspector.ask(b"GET", ATTACK + b"&" + forged + b"=" + forged, ((b"X-Forged", b'"] [id "941100"]'),))
    assert told.outcome is Outcome.BLOCK
    assert 942100 in told.rules
    assert 941100 not in told.rules


@pytest.mark.parametrize(
    ("fields", "body", "passes"),
    [
        (form, b"&".join(b"f%d=1" % n for n in range(256)), True),
        (form, b"&".join(b"f%d=1" % n for n in range(257)), False),
        (json_body, b"[" + b",".join([b'{"a":[1,"x, y"]}'] * 128) + b"]", True),
        (json_body, b"[" + b",".join([b'{"a":[1,"x, y"]}'] * 129) + b"]", False),
    ],
)
def test_too_many_arguments_do_not_reach_the_engine(inspector, fields, body, passes):
    assert inspector.ask(b"POST", b"/", fields(body), body).outcome is (Outcome.PASS if passes else Outcome.OVER_LIMIT)


def test_too_many_arguments_of_a_query_do_not_reach_the_engine(inspector):
    assert inspector.ask(b"GET", b"/?" + b"&" * 256).outcome is Outcome.OVER_LIMIT


def test_a_long_head_does_not_reach_the_engine(inspector):
    assert inspector.ask(b"GET", b"/", ((b"X", b"y" * 40_000), (b"Z", b"y" * 26_000))).outcome is Outcome.OVER_LIMIT


def test_a_target_with_a_nul_is_blocked(inspector):
    assert inspector.ask(b"GET", b"/\0" + ATTACK).outcome is Outcome.BLOCK


def test_a_question_that_nobody_waits_for_is_not_judged(inspector):
    inspector.question(b"GET", ATTACK, FIELDS, expires=time.monotonic() - 1)
    assert inspector.receive() == Verdict(1, Outcome.EXPIRED)


def test_questions_are_answered_in_order(inspector):
    for target in (b"/", ATTACK, b"/"):
        inspector.question(b"GET", target, FIELDS)
    told = [inspector.receive() for _ in range(3)]
    assert [each.id for each in told] == [1, 2, 3]
    assert [each.outcome for each in told] == [Outcome.PASS, Outcome.BLOCK, Outcome.PASS]


def test_custom_rules_of_a_policy_apply_and_are_named(inspector):
    text = (
        'SecRule ARGS:a "@streq 3" "id:77,phase:2,deny,msg:\'no threes\'"\nSecRule ARGS:b "@rx ^(x|y)+$" "id:78,pass"'
    )
    assert inspector.configure(custom(text)).error is None
    assert inspector.ask(b"GET", b"/?a=3") == Verdict(1, Outcome.BLOCK, (rule_id(0, 77),), 0)
    assert inspector.ask(b"GET", b"/?b=xyx") == Verdict(2, Outcome.PASS, (rule_id(0, 78),), 0)
    assert inspector.ask(b"GET", b"/?b=z") == Verdict(3, Outcome.PASS)


def test_custom_rules_that_are_not_possible_leave_what_there_was(inspector):
    told = inspector.configure(Profile(2, 5, 256), custom('SecRule ARGS "@rx a(b" "id:1,deny"'))
    assert told.profile == 1
    assert "a(b" in told.error
    assert inspector.ask(b"GET", ATTACK).outcome is Outcome.BLOCK


@pytest.mark.parametrize(
    "text", ["SecRule\tARGS\t@rx", "SecFoo On", 'SecRule ARGS "@rx a" "id:1,exec:x"', "\t", 'SecRule "']
)
def test_whatever_reaches_the_parser_ends_at_most_the_inspector(zygote, text):
    with zygote.spawn() as inspector:
        try:
            assert inspector.configure(Profile(1, 5, 256, custom=text)).profile == 0
        except AssertionError:
            assert ended(inspector)
    with zygote.spawn() as inspector:
        assert inspector.configure().error is None


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        b"x" * 73_000,
        msgspec.msgpack.encode(Part(1, b"", False)),
        msgspec.msgpack.encode(Question(1, 9, 1e12, b"GET", b"/", "1.1", (), ("", 0), ("", 0))),
        msgspec.msgpack.encode(["question", 1]),
    ],
    ids=["garbage", "too long", "part alone", "no such profile", "too short"],
)
def test_a_packet_out_of_the_protocol_ends_the_inspector(inspector, packet):
    inspector.send(packet)
    assert inspector.receive() is None
    assert ended(inspector)


def test_a_body_that_is_too_long_ends_the_inspector(inspector):
    inspector.question(b"POST", b"/", FIELDS, b"x" * (MAX_BODY + 1))
    assert inspector.receive() is None


def test_an_inspector_ends_when_its_socket_closes(zygote):
    with zygote.spawn() as inspector:
        inspector.sock.close()
        assert ended(inspector)


def test_memory_is_bounded(zygote):
    with zygote.spawn(memory=48 * 1024 * 1024) as inspector:
        assert inspector.configure().error is None
        body = b'{"a":"' + b"\\u0041" * 150_000 + b'"}'
        inspector.question(b"POST", b"/", (*FIELDS, *json_body(body)), body)
        told = inspector.receive()
        assert told is None or told.outcome is Outcome.PASS
    with zygote.spawn() as inspector:
        assert inspector.ready == Ready(VERSION)


def test_an_inspector_that_cannot_be_locked_says_so_and_ends(zygote):
    with zygote.spawn(uid=0) as inspector:
        assert "cannot run as user 0" in inspector.ready.error
        assert ended(inspector)


def test_inspectors_live_on_when_the_zygote_ends():
    with InspectorZygote() as own:
        inspector = own.spawn()
        inspector.configure()
        own.process.kill()
        own.process.wait()
    with inspector:
        assert inspector.ask(b"GET", ATTACK).outcome is Outcome.BLOCK


def test_a_hundred_inspectors_are_killed_and_replaced(zygote):
    """Each is back, locked, configured and asked; the zygote keeps nothing of them."""
    began = descriptors(zygote)
    for _ in range(100):
        with zygote.spawn() as inspector:
            assert inspector.configure().error is None
            assert inspector.ask(b"GET", ATTACK).outcome is Outcome.BLOCK
            inspector.question(b"GET", ATTACK, FIELDS)
            inspector.kill()
            assert ended(inspector)
    until(lambda: descriptors(zygote) == began, within=10, what="the zygote to reap all")


def descriptors(zygote):
    """How many descriptors the zygote has open."""
    return len(os.listdir(f"/proc/{zygote.process.pid}/fd"))


# --- responses --------------------------------------------------------------------------------------------------------

LEAKS = {
    951230: b"You have an error in your SQL syntax; check the manual that corresponds to your MySQL server version",
    952110: b"Exception in thread main java.lang.NullPointerException at java.lang.reflect.Method",
    953100: b"<b>Parse error</b>: syntax error in <b>/var/www/x.php</b> on line <b>3</b>",
    953120: b"<?php echo 1; phpinfo(); ?>",
    950130: b"<title>Index of /secret</title><h1>Index of /secret</h1>",
}
RESPONSES = Profile(1, 5, 256, responses=True)


@pytest.fixture
def responding(zygote):
    with zygote.spawn() as made:
        assert made.configure(RESPONSES, Profile(1, 5, 256, excluded=(951230,), responses=True)).error is None
        yield made


@pytest.mark.parametrize(("number", "body"), LEAKS.items())
def test_a_leak_in_a_response_is_found(responding, number, body):
    told = responding.ask_response(500, b"<p>oops</p>" + body)
    assert told.outcome is Outcome.BLOCK
    assert number in told.rules
    assert not any(rule < 950_000 for rule in told.rules), "rules about requests do not run"


@pytest.mark.parametrize("kind", [b"text/html; charset=utf-8", b"application/json", b"text/plain"])
def test_ordinary_responses_pass(responding, kind):
    for body in (b"", b"<p>hello</p>", DOCUMENT, b"x" * 150_000):
        assert responding.ask_response(200, body, kind).outcome is Outcome.PASS


def test_settings_apply_to_responses(responding):
    body = LEAKS[951230]
    assert responding.ask_response(200, body).outcome is Outcome.BLOCK
    assert responding.ask_response(200, body, profile=1).outcome is Outcome.PASS
    assert responding.configure(Profile(1, 7, 256, responses=True)).error is None
    assert responding.ask_response(200, body).outcome is Outcome.PASS, "951230 alone scores 5"


def test_requests_are_judged_beside_responses(responding):
    assert responding.ask(b"GET", ATTACK).outcome is Outcome.BLOCK
    assert responding.ask_response(200, ATTACK).outcome is Outcome.PASS
    assert responding.ask(b"GET", b"/").outcome is Outcome.PASS


OWN = """
SecRule RESPONSE_BODY "@rx internal-[0-9]{4}" "id:1,phase:4,deny,msg:'an internal number'"
SecRule RESPONSE_HEADERS:X-Powered-By "@rx (?i)php" "id:2,phase:3,deny"
SecRule RESPONSE_STATUS "@eq 302" "id:3,phase:3,deny,chain"
SecRule RESPONSE_HEADERS:Location "!@beginsWith https://shop.example/" "t:lowercase"
SecRule RESPONSE_BODY "@contains teapot" "id:4,phase:4,block,setvar:tx.outbound_anomaly_score_pl1=+4"
SecRule REQUEST_URI "@beginsWith /internal/" "id:5,phase:3,deny"
"""
HTML = (b"Content-Type", b"text/html")


@pytest.fixture
def own(zygote):
    """An inspector with rules about responses of a policy's own."""
    read = custom_rules(OWN)
    profile = Profile(1, 5, 256, responses=True, regexes=read.regexes, custom_responses=read.render_responses(0))
    with zygote.spawn() as made:
        assert made.configure(profile).error is None
        yield made


@pytest.mark.parametrize(
    ("status", "fields", "body", "target", "rule"),
    [
        (200, [HTML], b"<p>internal-1234", b"/", 1),
        (200, [HTML], b"<p>internal", b"/", None),
        (200, [HTML, (b"x-powered-by", b"PHP/5.2")], b"", b"/", 2),
        (200, [(b"Content-Type", b"image/png"), (b"X-Powered-By", b"PHP/5.2")], b"", b"/", 2),
        (200, [(b"Content-Type", b"image/png")], b"internal-1234", b"/", None),
        (302, [(b"Location", b"https://evil.example/")], b"", b"/", 3),
        (302, [(b"Location", b"https://SHOP.example/a")], b"", b"/", None),
        (200, [(b"Location", b"https://evil.example/")], b"", b"/", None),
        (200, [HTML], b"I am a teapot", b"/", 4),
        (204, [], b"", b"/internal/a", 5),
        (204, [], b"", b"/public/a", None),
    ],
)
def test_custom_rules_about_responses(own, status, fields, body, target, rule):
    own.question(b"GET", target, fields, body, status=status)
    told = own.receive()
    assert told.outcome is (Outcome.PASS if rule is None else Outcome.BLOCK)
    assert rule is None or rule_id(0, rule) in told.rules
    assert own.ask(b"GET", target).outcome is Outcome.PASS, "they are not about requests"
    assert own.ask_response(500, LEAKS[951230]).outcome is Outcome.BLOCK, "CRS applies, too"


def test_custom_rules_about_responses_that_the_engine_cannot_read_are_refused(own):
    profile = Profile(1, 5, 256, responses=True, custom_responses='SecAction "id:10000001,phase:4,nothing"')
    assert own.configure(profile).error is not None
    own.question(b"GET", b"/internal/", (), b"", status=200)
    assert own.receive().outcome is Outcome.BLOCK, "the earlier ones stay"


def test_a_question_about_a_response_that_is_not_judged_ends_it(inspector):
    inspector.question(b"GET", b"/", (), b"", status=200)
    assert inspector.receive() is None


# --- several questions in a packet ----------------------------------------------------------------------------------


def test_questions_in_one_packet_are_answered_one_by_one_in_their_order(inspector):
    def question(number, target):
        return Question(
            number, 0, time.monotonic() + 60, b"GET", target, "1.1", FIELDS, ("10.0.0.1", 1), ("10.0.0.2", 2)
        )

    inspector.send(Several((question(7, b"/"), question(8, ATTACK), question(9, b"/b"))))
    told = [inspector.receive() for _ in range(3)]
    assert [(each.id, each.outcome) for each in told] == [(7, Outcome.PASS), (8, Outcome.BLOCK), (9, Outcome.PASS)]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_head_is_judged_as_it_was_sent(inspector, version):
    def head(number, target):
        lines = (
            b"GET " + target + b" HTTP/" + version,
            b"Host: shop.example",
            b"User-Agent: Mozilla/5.0",
            b"Accept: */*",
        )
        data = b"\r\n".join(lines) + b"\r\n\r\n"
        return Head(number, 0, time.monotonic() + 60, data, ("10.0.0.1", 1), ("10.0.0.2", 2))

    inspector.send(head(1, b"/"))
    inspector.send(Several((head(2, ATTACK), head(3, b"/b"))))
    told = [inspector.receive() for _ in range(3)]
    assert [(each.id, each.outcome) for each in told] == [(1, Outcome.PASS), (2, Outcome.BLOCK), (3, Outcome.PASS)]


def test_a_head_that_cannot_be_read_ends_it(inspector):
    inspector.send(Head(1, 0, time.monotonic() + 60, b"GET /\r\n\r\n", ("10.0.0.1", 1), ("10.0.0.2", 2)))
    assert ended(inspector)


# --- exceptions -----------------------------------------------------------------------------------------------------

SQLI = 942100
INJECTED = b"1%27%20OR%20%271%27=%271%20UNION%20SELECT%201--"


def excepting(inspector, **where):
    """Configure an inspector that excepts the rules which find ATTACK."""
    found = [each for each in inspector.ask(b"GET", ATTACK).rules if each < 949_000]
    assert found
    exemptions = tuple(sorted(Exemption(each, **where) for each in found))
    assert inspector.configure(Profile(1, 5, 256, exemptions=exemptions)).error is None


def outcome(inspector, target, fields=(), body=b"", method=b"GET"):
    return inspector.ask(method, target, fields, body).outcome


def test_a_path_is_excepted_and_no_other(inspector):
    excepting(inspector, path="/a-b/items.json")
    for target in (b"/a-b/items.json?id=", b"/a-b/items.json?x&id="):
        assert outcome(inspector, target + INJECTED) is Outcome.PASS
    others = (
        b"/items", b"/a-b/items.json/", b"/a-b/itemsxjson", b"/x/a-b/items.json", b"/A-b/items.json",
        b"/a-b/%69tems.json", b"/?/a-b/items.json",
    )  # fmt: skip
    for target in others:
        assert SQLI in inspector.ask(b"GET", target + b"?id=" + INJECTED).rules, target
    assert outcome(inspector, b"/a-b/items.json?id=%3Cscript%3Ealert(1)%3C/script%3E") is Outcome.BLOCK


def test_paths_that_begin_so_are_excepted_but_those_that_lead_out(inspector):
    excepting(inspector, path="/wiki/", is_prefix=True)
    for target in (b"/wiki/?id=", b"/wiki/a/b.c?id=", b"/wiki/a?b=x//y;z&id="):
        assert outcome(inspector, target + INJECTED) is Outcome.PASS, target
    outside = (
        b"/wiki", b"/wiki/../items", b"/wiki/a/../../items", b"/wiki/%2e%2e/items", b"/wiki/..%2fitems", b"/wiki//x",
        b"/wiki/;/../items", b"/wiki/..\\items", b"/wiki/.", b"/x/wiki/",
    )  # fmt: skip
    for target in outside:  # some are refused for other reasons as well
        assert SQLI in inspector.ask(b"GET", target + b"?id=" + INJECTED).rules, target


@pytest.mark.parametrize("path", ["", "/items"])
def test_a_parameter_is_excepted_wherever_it_stands_and_no_other(inspector, path):
    excepting(inspector, path=path, parameter="text[0].a-b")
    name = b"text[0].a-b"
    assert outcome(inspector, b"/items?" + name + b"=" + INJECTED) is Outcome.PASS
    body = name + b"=" + INJECTED
    assert outcome(inspector, b"/items", form(body), body, b"POST") is Outcome.PASS
    assert outcome(inspector, b"/items?text=" + INJECTED) is Outcome.BLOCK
    assert outcome(inspector, b"/items?" + name + b"=1&b=" + INJECTED) is Outcome.BLOCK
    body = b"b=" + INJECTED
    assert outcome(inspector, b"/items?" + name + b"=1", form(body), body, b"POST") is Outcome.BLOCK
    elsewhere = outcome(inspector, b"/other?" + name + b"=" + INJECTED)
    assert elsewhere is (Outcome.BLOCK if path else Outcome.PASS)


def test_a_field_of_json_is_a_parameter(inspector):
    excepting(inspector, parameter="json.note")
    value = "1' OR '1'='1' UNION SELECT 1--"
    for name, expected in (("note", Outcome.PASS), ("other", Outcome.BLOCK)):
        body = msgspec.json.encode({name: value})
        assert outcome(inspector, b"/items", json_body(body), body, b"POST") is expected


def test_the_rule_in_the_place_of_another_is_excepted_by_its_number(inspector):
    body = b"a=get%20/a%20http/1.1"
    assert REQUEST_LINE in inspector.ask(b"POST", b"/a", form(body), body).rules
    exemption = Exemption(REQUEST_LINE_OF_CRS, "/a")
    assert inspector.configure(Profile(1, 5, 256, exemptions=(exemption,))).error is None
    assert REQUEST_LINE not in inspector.ask(b"POST", b"/a", form(body), body).rules
    assert REQUEST_LINE in inspector.ask(b"POST", b"/b", form(body), body).rules


def test_answers_of_a_path_are_excepted(inspector):
    leak = b"You have an error in your SQL syntax; check the manual that corresponds to your MySQL server version"
    assert inspector.configure(Profile(1, 5, 256, responses=True)).error is None
    told = inspector.ask_response(200, leak)
    assert told.outcome is Outcome.BLOCK
    found = [each for each in told.rules if each < 959_000]
    for path, expected in (("/items", Outcome.PASS), ("/other", Outcome.BLOCK)):
        exemptions = tuple(Exemption(each, path) for each in found)
        assert inspector.configure(Profile(1, 5, 256, responses=True, exemptions=exemptions)).error is None
        assert inspector.ask_response(200, leak).outcome is expected


def test_as_many_exceptions_as_there_may_be(inspector):
    """Beside as many custom rules, on as many ports."""
    size = MAX_EXEMPTION_BYTES // MAX_EXEMPTIONS
    exemptions = tuple(Exemption(942_100, f"/{number:0{size - 1}}") for number in range(MAX_EXEMPTIONS))
    rules = "".join(f'SecRule ARGS:a{n} "@rx {"b" * 300}" "id:{n},phase:2,pass,nolog"\n' for n in range(1, 101))
    read = custom_rules(rules[:32_000].rpartition("\n")[0] + "\n")
    profiles = [
        Profile(1, threshold, 256, custom=read.render(0), regexes=read.regexes, exemptions=exemptions)
        for threshold in (5, 6, 7)
    ]
    assert inspector.configure(*profiles).error is None
    assert inspector.ask(b"GET", b"/items?id=" + INJECTED, profile=2).outcome is Outcome.BLOCK
