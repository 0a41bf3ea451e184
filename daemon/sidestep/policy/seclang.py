"""Reads custom rules of a policy (SecLang) and writes them anew, in the form that inspectors load. Pure.

Whoever may write a ConfigMap writes these rules, and they are loaded beside the Core Rule Set and other policies' rules
by a C++ parser that is known to crash on strange input. So only an allow list is taken, and never the text itself: what
was read is written again, with one blank where blanks may stand.

    SecRule VARIABLES "OPERATOR" "ACTIONS"        (and rules chained to it)
    SecAction "ACTIONS"

  * Rules can only add: no `ctl`, `skip`, `allow`, `SecRuleRemove...`, and no variable of the transaction is set but
    those that begin with `custom_`, or a score that is increased. What another policy forbids stays forbidden.
  * Rules reach nothing: no files, scripts, programs, names of hosts, collections that live longer than a request.
  * A rule of phase 3 or 4 is about the response. Responses are judged apart from their requests, of which only method,
    target and addresses are known there: those rules have variables of their own, and see nothing that rules about the
    request have set.
  * An id is between 1 and 99,999, the range that CRS leaves to its users, and used once in a policy. Policies that
    share an inspector may use the same ids: what is loaded has the number of the policy's place in front (`rule_id`).

Language: "Reference Manual (v3.x)" of ModSecurity.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final, TypeAlias

import msgspec

from sidestep.model.errors import ConfigurationError
from sidestep.model.waf import CUSTOM_PLACE, FIRST_CUSTOM

MAX_TEXT: Final = 32 * 1024
"""Bytes of custom rules of one policy."""
MAX_RULES: Final = 256
MAX_ID: Final = CUSTOM_PLACE - 1
REVISION: Final = "@SECRET@"
"""Stands for the revision that an inspector gives to the rules."""

VARIABLES: Final = frozenset(
    (
        "ARGS", "ARGS_COMBINED_SIZE", "ARGS_GET", "ARGS_GET_NAMES", "ARGS_NAMES", "ARGS_POST", "ARGS_POST_NAMES",
        "FILES", "FILES_COMBINED_SIZE", "FILES_NAMES", "FILES_SIZES", "MATCHED_VAR", "MATCHED_VARS",
        "MATCHED_VARS_NAMES", "MATCHED_VAR_NAME", "MULTIPART_FILENAME", "MULTIPART_NAME", "QUERY_STRING", "REMOTE_ADDR",
        "REMOTE_PORT", "REQBODY_ERROR", "REQBODY_PROCESSOR", "REQUEST_BASENAME", "REQUEST_BODY", "REQUEST_BODY_LENGTH",
        "REQUEST_COOKIES", "REQUEST_COOKIES_NAMES", "REQUEST_FILENAME", "REQUEST_HEADERS", "REQUEST_HEADERS_NAMES",
        "REQUEST_LINE", "REQUEST_METHOD", "REQUEST_PROTOCOL", "REQUEST_URI", "REQUEST_URI_RAW", "SERVER_ADDR",
        "SERVER_NAME", "SERVER_PORT", "TX", "XML",
    )
)  # fmt: skip
HEAD_VARIABLES: Final = frozenset(
    (
        "ARGS_GET", "ARGS_GET_NAMES", "MATCHED_VAR", "MATCHED_VARS", "MATCHED_VARS_NAMES", "MATCHED_VAR_NAME",
        "QUERY_STRING", "REMOTE_ADDR", "REMOTE_PORT", "REQUEST_BASENAME", "REQUEST_FILENAME", "REQUEST_LINE",
        "REQUEST_METHOD", "REQUEST_PROTOCOL", "REQUEST_URI", "REQUEST_URI_RAW", "RESPONSE_CONTENT_LENGTH",
        "RESPONSE_CONTENT_TYPE", "RESPONSE_HEADERS", "RESPONSE_HEADERS_NAMES", "RESPONSE_PROTOCOL", "RESPONSE_STATUS",
        "SERVER_ADDR", "SERVER_PORT", "TX",
    )
)  # fmt: skip
"""Variables of rules about a response, in phase 3: what is known when its head is here."""
BODY_VARIABLES: Final = HEAD_VARIABLES | {"RESPONSE_BODY"}
"""Those of phase 4."""
_PHASES: Final = {
    "1": VARIABLES, "2": VARIABLES, "request": VARIABLES, "3": HEAD_VARIABLES, "4": BODY_VARIABLES,
    "response": BODY_VARIABLES,
}  # fmt: skip
"""The phases that a rule may have, and the variables of each."""
OPERATORS: Final = frozenset(
    (
        "beginsWith", "contains", "containsWord", "detectSQLi", "detectXSS", "endsWith", "eq", "ge", "gt", "ipMatch",
        "le", "lt", "noMatch", "pm", "rx", "streq", "strmatch", "unconditionalMatch", "validateByteRange",
        "validateUrlEncoding", "validateUtf8Encoding", "within",
    )
)  # fmt: skip
REGEXES: Final = frozenset(("rx",))
TRANSFORMATIONS: Final = frozenset(
    (
        "none", "base64Decode", "base64DecodeExt", "cmdLine", "compressWhitespace", "cssDecode", "escapeSeqDecode",
        "hexDecode", "htmlEntityDecode", "jsDecode", "length", "lowercase", "md5", "normalisePath", "normalisePathWin",
        "normalizePath", "normalizePathWin", "removeComments", "removeCommentsChar", "removeNulls", "removeWhitespace",
        "replaceComments", "replaceNulls", "sha1", "sqlHexDecode", "trim", "trimLeft", "trimRight", "uppercase",
        "urlDecode", "urlDecodeUni", "urlEncode", "utf8toUnicode",
    )
)  # fmt: skip
_FLAGS: Final = frozenset(("pass", "block", "deny", "log", "capture", "chain", "multiMatch"))
_LEFT_OUT: Final = frozenset(
    ("auditlog", "noauditlog", "nolog", "logdata", "ver", "rev", "maturity", "accuracy", "status")
)
"""Actions without effect here: what matched is never told, and every rule that matches is."""

_VARIABLE: Final = re.compile(
    r"[!&]?([A-Z_]+)(?::(?:[A-Za-z0-9_.\-]{1,128}|/[^/|\"'\\\s]{1,128}/|'/[^/|\"'\\\s]{1,128}/'))?"
)
_SCORES: Final = re.compile(
    r"tx\.(?:anomaly_score_pl[1-4]|inbound_anomaly_score_pl[1-4])=\+(?:[0-9]{1,4}|%\{tx\.[a-z_]{1,64}\})"
)
_SCORES_OF_RESPONSES: Final = re.compile(r"tx\.outbound_anomaly_score_pl[1-4]=\+(?:[0-9]{1,4}|%\{tx\.[a-z_]{1,64}\})")
_CUSTOM: Final = re.compile(r"tx\.custom_[a-z0-9_]{1,64}=\+?[A-Za-z0-9_.\-]{0,64}")
_WORD: Final = re.compile(r"[A-Za-z0-9_./\-]{1,128}")
_MESSAGE: Final = re.compile(r"[A-Za-z0-9 _.,:;/()\-]{1,200}")
_ACTION: Final = re.compile(r"\s*(?P<name>[A-Za-z]+)(?::(?:'(?P<quoted>[^']*)'|(?P<plain>[^,']*)))?\s*(?:,|\Z)")
_TOKEN: Final = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^\s"]+))', re.DOTALL)


def rule_id(place: int, number: int) -> int:
    """The id with which rule `number` of the policy at this place is loaded."""
    return FIRST_CUSTOM + place * CUSTOM_PLACE + number


def place_and_number(loaded: int) -> tuple[int, int] | None:
    """The inverse of `rule_id`; None for a rule that is none of a policy."""
    return divmod(loaded - FIRST_CUSTOM, CUSTOM_PLACE) if loaded >= FIRST_CUSTOM else None


_Rule: TypeAlias = tuple[str, int | None, str]


class CustomRules(msgspec.Struct, frozen=True):
    """Rules that were taken, about requests and about responses; their regexes (PCRE, not compiled yet), and their
    messages by id.

    A rule is what stands before its actions, its id (None where it goes on a chain), and its other actions.
    """

    rules: tuple[_Rule, ...] = ()
    responses: tuple[_Rule, ...] = ()
    regexes: tuple[str, ...] = ()
    names: tuple[tuple[int, str], ...] = ()

    @property
    def size(self) -> int:
        """Characters of all rules as they are rendered."""
        return len(self.render(0)) + len(self.render_responses(0))

    def render(self, place: int) -> str:
        """The rules about requests for an inspector, of the policy at this place."""
        return _render(self.rules, place)

    def render_responses(self, place: int) -> str:
        """Those about responses."""
        return _render(self.responses, place)


def _render(rules: Iterable[_Rule], place: int) -> str:
    ids = ((each, "" if each[1] is None else f"id:{rule_id(place, each[1])},") for each in rules)
    return "".join(f'{before} "{name}{actions}"\n' for (before, _, actions), name in ids)


def custom_rules(text: str) -> CustomRules:
    """Read the rules of one policy. Raises ConfigurationError, which names the line."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT:
        raise ConfigurationError(f"custom rules have more than {MAX_TEXT} bytes")
    reader = _Reader()
    for line, statement in _statements(text):
        try:
            reader.read(statement)
        except ConfigurationError as error:
            raise ConfigurationError(f"line {line}: {error.reason}") from None
    if reader.is_chained:
        raise ConfigurationError("the last rule begins a chain that does not go on")
    regexes, names = tuple(reader.regexes), tuple(reader.names.items())
    return CustomRules(tuple(reader.rules), tuple(reader.responses), regexes, names)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Numbers of lines, and statements on one line each: a backslash at the end of a line continues it."""
    waiting, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not waiting:
            began = number
            if not line.strip() or line.lstrip().startswith("#"):
                continue
        if line.rstrip().endswith("\\"):
            waiting += line.rstrip()[:-1].rstrip() + " "
            continue
        yield began, waiting + line.strip()
        waiting = ""
    if waiting.strip():
        yield began, waiting


class _Reader:
    """Statements one after the other; a chain is several of them."""

    def __init__(self) -> None:
        self.rules: list[_Rule] = []
        self.responses: list[_Rule] = []
        self.regexes: list[str] = []
        self.names: dict[int, str] = {}
        self.is_chained = False
        self._phase = "2"
        """Of the last rule, or of the chain that it goes on."""

    def read(self, statement: str) -> None:
        """Take one statement. Raises ConfigurationError."""
        if REVISION in statement:
            raise ConfigurationError(f"the text {REVISION}, which is reserved")
        if not statement.isprintable() or not statement.isascii():
            raise ConfigurationError("a character that is not printable ASCII: write \\x and its number")
        tokens = [found[1] if found[1] is not None else found[2] for found in _TOKEN.finditer(statement)]
        if "".join(_TOKEN.sub("", statement).split()):
            raise ConfigurationError("a quotation mark that is not closed")
        if len(self.rules) + len(self.responses) >= MAX_RULES:
            raise ConfigurationError(f"more than {MAX_RULES} rules")
        directive, *rest = tokens or [""]
        if directive == "SecAction" and len(rest) == 1 and not self.is_chained:
            self._take("SecAction", self._actions(rest[0]))
        elif directive == "SecRule" and (len(rest) == 3 or (len(rest) == 2 and self.is_chained)):
            operator, actions = self._operator(rest[1]), self._actions(rest[2] if rest[2:] else "")
            self._take(f'SecRule {_variables(rest[0], _PHASES[self._phase])} "{operator}"', actions)
        elif directive in {"SecRule", "SecAction"}:
            raise ConfigurationError(f"{directive} does not have the parts that it needs")
        else:
            raise ConfigurationError(f"the directive {directive[:64]!r} is not allowed: only SecRule and SecAction are")

    def _take(self, before: str, actions: tuple[int | None, str]) -> None:
        rules = self.responses if self._is_about_response else self.rules
        rules.append((before, *actions))

    @property
    def _is_about_response(self) -> bool:
        return _PHASES[self._phase] is not VARIABLES

    def _operator(self, text: str) -> str:
        """Check an operator; without a name it is a regex."""
        negated, text = ("!", text[1:].lstrip()) if text.startswith("!") else ("", text)
        name, argument = "rx", text
        if text.startswith("@"):
            name, _, argument = text[1:].partition(" ")
        if name not in OPERATORS:
            raise ConfigurationError(f"the operator @{name[:64]} is not allowed")
        if name in REGEXES:
            self.regexes.append(argument.replace('\\"', '"'))
        if "%{" in argument or argument.endswith("\\"):
            raise ConfigurationError("an operator with a variable, or a backslash at its end")
        return f"{negated}@{name} {argument}".rstrip()

    def _actions(self, text: str) -> tuple[int | None, str]:
        """Check actions; returns the rule's id, and the others that have an effect."""
        found, place = list[tuple[str, str]](), 0
        while place < len(text.rstrip()):
            matched = _ACTION.match(text, place)
            if matched is None:
                raise ConfigurationError(f"no action: {text[place : place + 40]!r}")
            value = matched["quoted"] if matched["quoted"] is not None else matched["plain"] or ""
            found.append((matched["name"], value.strip()))
            place = matched.end()
        is_first, self.is_chained = not self.is_chained, any(name == "chain" for name, _ in found)
        if is_first:
            self._phase = next((value for name, value in found if name == "phase" and value in _PHASES), "2")
        written = [self._action(name, value) for name, value in found if name not in _LEFT_OUT and name != "id"]
        ids = [int(value) if value.isdecimal() and len(value) <= 6 else 0 for name, value in found if name == "id"]
        if is_first:
            if len(ids) != 1 or not 1 <= ids[0] <= MAX_ID:
                raise ConfigurationError(f"a rule needs one id from 1 to {MAX_ID}")
            if ids[0] in self.names:
                raise ConfigurationError(f"the id {ids[0]} is that of an earlier rule")
            self.names[ids[0]] = next((value for name, value in found if name == "msg"), "")
            if not any(name == "phase" for name, _ in found):
                written.append("phase:2")
            if not any(name in {"pass", "block", "deny"} for name, _ in found):
                written.append("pass")
            written += ["log", f"rev:'{REVISION}'"]
            if not any(name == "msg" for name, _ in found):
                written.append("msg:'custom rule'")
        elif ids or any(name in {"phase", "pass", "block", "deny", "msg"} for name, _ in found):
            raise ConfigurationError("a rule that goes on a chain has no id, phase, msg or disruptive action")
        return ids[0] if is_first else None, ",".join(each for each in written if each)

    def _action(self, name: str, value: str) -> str:
        """Write one action, or nothing for those that are written anyway."""
        if name in _FLAGS and not value:
            return {"log": "", "deny": "deny,status:403"}.get(name, name)
        scores = _SCORES_OF_RESPONSES if self._is_about_response else _SCORES
        allowed = {
            "phase": value == self._phase,
            "t": value in TRANSFORMATIONS,
            "msg": _MESSAGE.fullmatch(value) is not None,
            "tag": _WORD.fullmatch(value) is not None,
            "severity": _WORD.fullmatch(value) is not None,
            "setvar": scores.fullmatch(value) is not None or _CUSTOM.fullmatch(value) is not None,
        }
        if not allowed.get(name, False):
            raise ConfigurationError(f"the action {f'{name}:{value}' if value else name!s:.80} is not allowed")
        return f"{name}:'{value}'" if name in {"msg", "tag", "severity", "setvar"} else f"{name}:{value}"


def _variables(text: str, allowed: Collection[str]) -> str:
    """Check the variables of a rule, which has those of its phase."""
    for part in text.split("|"):
        found = _VARIABLE.fullmatch(part)
        if found is None or found[1] not in VARIABLES | BODY_VARIABLES:
            raise ConfigurationError(f"the variable {part[:64]!r} is not allowed")
        if found[1] not in allowed:
            phases = " or ".join(phase for phase, names in _PHASES.items() if phase.isdecimal() and found[1] in names)
            raise ConfigurationError(f"the variable {part[:64]!r} needs phase {phases}")
    return text
