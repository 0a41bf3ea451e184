"""The rules that inspectors judge by: the Core Rule Set (CRS), and for each profile a set of its own that shares it.

`CoreRules.load` reads the files once, in the zygote. `profile` adds the settings and custom rules of one profile in
front of them. That takes some 3 ms in an inspector and writes to a counter beside each shared rule, 3 MiB of pages that
are its own from then on. Therefore the zygote makes the sets of usual settings (`prepare`), and inspectors use those.
The settings are those of CRS 3.3 and of CRS 4, which have other names.

The library says nothing of a regex that PCRE2 cannot compile: such a rule never applies, or if it is negated to every
request. CRS 4.0 has some. They are found when the files are read (`unreadable`), and are left out.

Which rules matched is read from the library's log lines, because its C interface tells nothing else. Their form is

    ModSecurity: Warning. WHAT MATCHED [file "F"] [line "L"] [id "N"] [rev "R"] [msg "..."] [data "..."] ...

and what matched, as well as later parts, may contain any text of the client, brackets and quotes included. So only an
id beside a secret is believed: rules from files are loaded by a path that nobody can guess (`_secret_path`), and ours
and the profiles' rules have a secret as their revision. Both are chosen when the rules are loaded; nothing tells them
to anybody.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from sidestep.inspector.regexes import Regexes
from sidestep.model.errors import ConfigurationError
from sidestep.model.waf import REQUEST_LINE, REQUEST_LINE_OF_CRS
from sidestep.protocols.media_types import TEXT_TYPES
from sidestep.protocols.waf_messages import MAX_BODY, MAX_RULES
from sidestep.snapshots.waf import Profile

if TYPE_CHECKING:
    from sidestep.inspector.modsecurity import Engine, Findings, RuleSet
    from sidestep.snapshots.waf import Exemption

DEBIAN: Final = ("/etc/modsecurity/crs/crs-setup.conf", "/usr/share/modsecurity-crs/rules")
"""Setup and rules of Debian's package modsecurity-crs."""
THRESHOLD: Final = 5
"""The anomaly threshold of CRS: one critical rule."""
_SECRET_BITS: Final = 64
_SCORE, _SETTINGS, _JSON, _XML = 9_900_001, 9_900_002, 9_900_003, 9_900_004
_BODY, _MULTIPART, _BOUNDARY, _INTERNAL, _FORM = 9_900_005, 9_900_006, 9_900_007, 9_900_008, 9_900_009
_GRAPHQL = 9_900_010
"""Ids of our own rules; CRS has those from 900,000 to 9,899,999, users those below 100,000."""
_BASE: Final = """
SecRuleEngine On
SecAuditEngine Off
SecRequestBodyAccess On
SecResponseBodyAccess Off
SecRequestBodyLimit {limit}
SecRequestBodyNoFilesLimit {limit}
SecRequestBodyLimitAction Reject
SecRequestBodyJsonDepthLimit 64
SecArgumentsLimit 10000
SecPcreMatchLimit 100000
SecCollectionTimeout 600
SecRule REQUEST_HEADERS:Content-Type "@rx ^(?:application(?:/soap\\+|/)|text/)xml" \
  "id:{xml},phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=XML,{parsed}"
SecRule REQUEST_HEADERS:Content-Type "@rx ^application/(?:[a-z0-9.-]+\\+)?json" \
  "id:{json},phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=JSON,{parsed}"
SecRule REQUEST_HEADERS:Content-Type "@rx ^multipart/form-data" \
  "id:{form},phase:1,t:none,t:lowercase,pass,nolog,{parsed}"
SecRule ARGS:json.query "@rx ^\\s*(?:\\{{|(?:query|mutation|subscription|fragment)\\b)" \
  "id:{graphql},phase:2,t:none,pass,nolog,ctl:ruleRemoveTargetById=932100;ARGS:json.query,\
ctl:ruleRemoveTargetById=932235;ARGS:json.query"
SecRule REQBODY_ERROR "!@eq 0" \
  "id:{body},phase:2,t:none,log,deny,status:403,rev:'{secret}',msg:'The body cannot be parsed'"
SecRule MULTIPART_STRICT_ERROR "!@eq 0" \
  "id:{multipart},phase:2,t:none,log,deny,status:403,rev:'{secret}',msg:'The multipart body is not well-formed'"
SecRule MULTIPART_UNMATCHED_BOUNDARY "@eq 1" \
  "id:{boundary},phase:2,t:none,log,deny,status:403,rev:'{secret}',msg:'The multipart body has a strange boundary'"
SecRule TX:/^MSC_/ "!@streq 0" \
  "id:{internal},phase:2,t:none,log,deny,status:403,rev:'{secret}',msg:'A regex of the rules was too slow'"
"""
"""What Debian's modsecurity.conf-recommended says, with our bounds and without files and logs.

Rule 932100 of CRS 3.3 takes `{{ id` for a shell command, and 932235 of CRS 4 `$a: b`: they do not look at the query of
a GraphQL request. Other rules about commands do.
"""
_BASE_OF_RESPONSES: Final = """
SecRuleEngine On
SecAuditEngine Off
SecRequestBodyAccess Off
SecResponseBodyAccess On
SecResponseBodyMimeType {kinds}
SecResponseBodyLimit {limit}
SecResponseBodyLimitAction ProcessPartial
SecPcreMatchLimit 100000
SecCollectionTimeout 600
"""
"""What is in front of the rules about responses, which are a set of their own: the rules about requests would run
again, for milliseconds. Of them only those that make the settings are in it."""
_RESPONSES: Final = ("REQUEST-901-*.conf", "RESPONSE-*.conf")
_PARSED: Final = "ctl:ruleRemoveTargetByTag=OWASP_CRS;REQUEST_BODY"
"""For a body that is parsed: CRS looks at its parts only, as ModSecurity 2 does, for which it is written. Version 3 has
REQUEST_BODY as well: it would look at all twice, and into files that are uploaded."""
_SCORES: Final = """
SecRule REMOTE_PORT "@unconditionalMatch" "id:{score},phase:5,pass,t:none,log,rev:'{secret}',\
msg:'score %{{tx.anomaly_score}} %{{tx.blocking_inbound_anomaly_score}}'"
"""
"""Tells the score: CRS 3 has it in the first variable, CRS 4 in the second."""
_PROFILE: Final = """
SecAction "id:{settings},phase:1,pass,t:none,nolog,\
setvar:tx.paranoia_level={level},setvar:tx.executing_paranoia_level={level},\
setvar:tx.blocking_paranoia_level={level},setvar:tx.detection_paranoia_level={level},\
setvar:tx.inbound_anomaly_score_threshold={threshold},\
setvar:tx.outbound_anomaly_score_threshold={outbound},\
setvar:'tx.allowed_methods={methods}',\
setvar:'tx.allowed_request_content_type={kinds}'"
"""
_LENIENT: Final = """
SecRuleRemoveById {wrong}
SecRule ARGS_NAMES|ARGS|REQUEST_BODY|XML:/* "@rx (?:get|post|head|options|connect|put|delete|trace|track|patch|\
propfind|propatch|mkcol|copy|move|lock|unlock)\\s+[^\\s]+\\s+http/\\d" \
  "id:{smuggling},phase:2,block,t:none,t:urlDecodeUni,t:htmlEntityDecode,t:lowercase,log,rev:'{secret}',\
msg:'HTTP Request Smuggling Attack',setvar:'tx.anomaly_score_pl1=+%{{tx.critical_anomaly_score}}',\
setvar:'tx.inbound_anomaly_score_pl1=+%{{tx.critical_anomaly_score}}'"
"""
"""Leaves REQUEST_LINE_OF_CRS out. The rule in its place wants a version, as the rule of CRS 4 does."""
_EXEMPT: Final = 9_900_100
"""The first id of the rules that make exceptions: one for each path."""
_EXACT, _BEGIN = r"^{path}(?:\?|$)", r"^(?![^?]*(?:[%\x5c;]|//|/\.)){path}"
"""Paths of exceptions, in a target as it was sent. One that an app may take for a path outside of the prefix (by dots,
encodings, path parameters) is not excepted."""
_METHODS: Final = "GET HEAD POST OPTIONS PUT PATCH DELETE"
"""CRS allows the first four, which refuses most APIs. Rules of a policy can allow fewer."""
_KINDS: Final = (
    "application/x-www-form-urlencoded", "multipart/form-data", "text/xml", "application/xml", "application/soap+xml",
    "application/json", "application/cloudevents+json", "application/cloudevents-batch+json",
    "application/merge-patch+json", "application/json-patch+json", "application/vnd.api+json", "application/ld+json",
    "application/problem+json", "application/graphql+json",
)  # fmt: skip
"""Those that CRS allows, and more that are parsed as JSON. CRS before 3.3.7 allows multipart/related, too, which
ModSecurity does not parse."""
_ARGUMENTS: Final = ("ARGS", "ARGS_GET", "ARGS_POST")
_TEXTS: Final = {
    _BODY: "The body cannot be parsed",
    _MULTIPART: "The multipart body is not well-formed",
    _BOUNDARY: "The multipart body has a strange boundary",
    _INTERNAL: "A regex of the rules was too slow",
    REQUEST_LINE: "HTTP Request Smuggling Attack",
}
_FILE_RULE: Final = re.compile(r"""\bid:'?(\d+)'?[,"].*?\bmsg:'((?:[^'\\]|\\.)*)'""", re.DOTALL)
_VERSION: Final = re.compile(r"\bver:'OWASP_CRS/([0-9A-Za-z.\-]{1,32})'")
_REGEX: Final = re.compile(
    r"""^[ \t]*SecRule[ \t]+\S+[ \t]+"!?@rx[ \t]((?:[^"\\]|\\.)*)"(?:[^"]*"[^"]*\bid:'?(\d+))?""", re.MULTILINE
)
"""The regex of a rule, and its id, unless it goes on a chain; in a text without continued lines."""
_STATEMENT: Final = re.compile(r"^(?:SecRule|SecAction)\b(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)


class Judgement(NamedTuple):
    """What a profile says of a request."""

    blocked: bool
    rules: tuple[int, ...]
    score: int


class Location(msgspec.Struct, frozen=True):
    """Where a Core Rule Set is: its setup file and the folder of its rules."""

    setup: str
    rules: str

    @classmethod
    def find(cls, folder: str | None) -> Location:
        """Debian's, or the one in `folder`, as the project releases it. Raises ConfigurationError."""
        if folder is None:
            found = cls(*DEBIAN)
        else:
            setup = Path(folder, "crs-setup.conf")
            found = cls(str(setup if setup.exists() else f"{setup}.example"), str(Path(folder, "rules")))
        if not Path(found.setup).is_file() or not any(Path(found.rules).glob("*.conf")):
            raise ConfigurationError("there is no Core Rule Set", subject="folder", value=folder or found.rules)
        return found


class CoreRules:
    """The Core Rule Set, loaded; `names` are what its rules say that they found, by id; `version` is what they say
    of themselves, empty if they do not; `left_out` are ids of rules with regexes that cannot be compiled."""

    def __init__(
        self, engine: Engine, rules: RuleSet, responses: RuleSet, names: dict[int, str], secret: str, marker: str
    ) -> None:
        self._engine = engine
        self._rules = rules
        self._responses = responses
        self.names = names
        self.version = ""
        self.left_out: tuple[int, ...] = ()
        self._secret = secret
        self._prepared: dict[tuple[int, int], RuleSet] = {}
        self._prepared_responses: dict[tuple[int, int], RuleSet] = {}
        file = re.escape(marker.encode()) + rb'[^"]*"\] \[line "\d+"\] \[id "(\d+)"\]'
        ours = rb'\[id "(\d+)"\] \[rev "' + secret.encode() + rb'"\]'
        self._id = re.compile(rb'\[file "' + file + rb"|" + ours)
        self._score = re.compile(ours + rb' \[msg "score (\d*) ?(\d*)"\]')

    @classmethod
    def load(cls, engine: Engine, location: Location) -> CoreRules:
        """Read all files. Raises ConfigurationError."""
        secret, marker = secrets.token_hex(8), _secret_path()
        rules = engine.rule_set()
        names = {"score": _SCORE, "json": _JSON, "xml": _XML, "body": _BODY, "multipart": _MULTIPART}
        names |= {"boundary": _BOUNDARY, "internal": _INTERNAL, "limit": MAX_BODY, "graphql": _GRAPHQL}
        rules.add(_BASE.format(secret=secret, form=_FORM, parsed=_PARSED, **names))
        rules.add_file(location.setup)
        texts: dict[int, str] = dict(_TEXTS)
        version, regexes = "", Regexes()
        left_out: list[int] = []
        for path in sorted(Path(location.rules).glob("*.conf")):
            rules.add_file(f"{location.rules}{marker}{path.name}")
            text = path.read_text("utf-8", "replace")
            texts.update(_texts(text))
            left_out += unreadable(text, regexes)
            told = _VERSION.search(text)
            version = version or (told[1] if told is not None else "")
        rules.add(_SCORES.format(secret=secret, score=_SCORE))
        responses = engine.rule_set()
        responses.add(_BASE_OF_RESPONSES.format(limit=MAX_BODY, kinds=" ".join(TEXT_TYPES)))
        responses.add_file(location.setup)
        for pattern in _RESPONSES:
            for path in sorted(Path(location.rules).glob(pattern)):
                responses.add_file(f"{location.rules}{marker}{path.name}")
        core = cls(engine, rules, responses, texts, secret, f"{location.rules}{marker}")
        core.version, core.left_out = version, tuple(left_out)
        return core

    def prepare(self) -> None:
        """Make the sets of all levels with the usual threshold, nothing excluded, and no custom rules."""
        for level in range(1, 5):
            made = self.profile(Profile(level, THRESHOLD, 1))
            made.is_shared = True
            self._prepared[level, THRESHOLD] = made
            of_responses = self.profile_of_responses(Profile(level, THRESHOLD, 1))
            of_responses.is_shared = True
            self._prepared_responses[level, THRESHOLD] = of_responses

    def profile(self, profile: Profile) -> RuleSet:
        """Make the rule set of a profile. Raises ConfigurationError for custom rules that are not possible."""
        prepared = self._prepared.get((profile.paranoia, profile.threshold))
        if prepared is not None and not (profile.excluded or profile.exemptions or profile.custom):
            return prepared
        made = self._engine.rule_set()
        try:
            made.add(_settings(profile))
            if profile.paranoia == 1 and REQUEST_LINE_OF_CRS not in profile.excluded:
                made.add(_LENIENT.format(wrong=REQUEST_LINE_OF_CRS, smuggling=REQUEST_LINE, secret=self._secret))
            made.add(self._without(profile))
            made.add(_exemptions(profile.exemptions))
            if profile.custom:
                made.add(profile.custom.replace("@SECRET@", self._secret))
            made.merge(self._rules)
        except BaseException:
            made.close()
            raise
        return made

    def profile_of_responses(self, profile: Profile) -> RuleSet:
        """Make the set for the responses of a profile. Raises ConfigurationError as `profile` does."""
        prepared = self._prepared_responses.get((profile.paranoia, profile.threshold))
        if prepared is not None and not (profile.excluded or profile.exemptions or profile.custom_responses):
            return prepared
        made = self._engine.rule_set()
        try:
            made.add(_settings(profile))
            made.add(self._without(profile))
            made.add(_exemptions([each for each in profile.exemptions if not each.parameter]))
            if profile.custom_responses:
                made.add(profile.custom_responses.replace("@SECRET@", self._secret))
            made.merge(self._responses)
        except BaseException:
            made.close()
            raise
        return made

    def _without(self, profile: Profile) -> str:
        """What leaves out the rules that a profile excludes, and those that cannot be applied."""
        gone = sorted({*profile.excluded, *self.left_out})
        return f"SecRuleRemoveById {' '.join(map(str, gone))}\n" if gone else ""

    def judgement(self, findings: Findings, threshold: int) -> Judgement:
        """Read what the rules say of a request."""
        score, ids = 0, dict[int, None]()
        for line in findings.lines:
            told = self._score.search(line)
            if told is not None and int(told[1]) == _SCORE:
                score = max(int(told[2] or 0), int(told[3] or 0))
                continue
            found = self._id.search(line)
            if found is not None:
                ids[int(found[1] or found[2])] = None
        blocked = findings.denied or score >= threshold
        return Judgement(blocked, tuple(ids)[:MAX_RULES], min(score, 2**32))


def _settings(profile: Profile) -> str:
    """The settings of a profile. The threshold of responses is as much below that of requests as it is in CRS."""
    return _PROFILE.format(
        settings=_SETTINGS,
        level=profile.paranoia,
        threshold=profile.threshold,
        outbound=max(1, profile.threshold - 1),
        methods=_METHODS,
        kinds=" ".join(f"|{kind}|" for kind in _KINDS),
    )


def _exemptions(exemptions: Iterable[Exemption]) -> str:
    """Rules of the first phase that have others not look at a request, or at some of its arguments."""
    actions: dict[str, list[str]] = {}
    for each in exemptions:
        form = _BEGIN if each.is_prefix else _EXACT
        where = f'SecRule REQUEST_URI_RAW "@rx {form.format(path=re.escape(each.path))}"' if each.path else "SecAction"
        of_path = actions.setdefault(where, [])
        for rule in (each.rule, REQUEST_LINE) if each.rule == REQUEST_LINE_OF_CRS else (each.rule,):
            if each.parameter:
                of_path += [f"ctl:ruleRemoveTargetById={rule};{kind}:{each.parameter}" for kind in _ARGUMENTS]
            else:
                of_path.append(f"ctl:ruleRemoveById={rule}")
    return "".join(
        f'{where} "id:{_EXEMPT + place},phase:1,pass,t:none,nolog,{",".join(found)}"\n'
        for place, (where, found) in enumerate(actions.items())
    )


def unreadable(text: str, regexes: Regexes) -> list[int]:
    """The ids of the rules in a file of which a regex cannot be compiled; of a chain the id of its first rule."""
    found: list[int] = []
    rule = 0
    for regex, number in _REGEX.findall(text.replace("\\\n", " ")):
        rule = int(number or rule)
        try:
            regexes.check(regex.replace('\\"', '"'))
        except ConfigurationError:
            found.append(rule)
    return [each for each in dict.fromkeys(found) if each]


def _secret_path() -> str:
    """The way from a folder to a file in it, by a path of many equal ones: each bit is a `/` or a `/.` more."""
    bits = secrets.randbits(_SECRET_BITS)
    return "/" + "".join("./" if bits >> place & 1 else "/" for place in range(_SECRET_BITS))


def _texts(text: str) -> Iterator[tuple[int, str]]:
    """Ids and messages of the rules in a file; variables in messages are left out."""
    for statement in _STATEMENT.findall(text):
        found = _FILE_RULE.search(statement)
        if found is not None:
            message = re.sub(r"\s*%\{[^}]*\}", "", found[2])
            yield int(found[1]), " ".join(message.split())[:80]
