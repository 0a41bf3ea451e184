"""Built-in patterns of inspection rules: card numbers, bank accounts, keys and tokens.

A pattern has two halves. Its *needle*, an RE2 regex, finds where a secret may begin; the needles of a policy are
searched for together with the regexes of its rules, in one pass. Its *guard* then looks at the text from there and
decides. The guard is what keeps false positives away: a checksum (Luhn for cards, mod 97 for IBANs, CRC-32 in tokens of
GitHub and npm), a structure that decodes (JWT, PyPI), or at least the look of something random.

Three properties keep a verdict independent of how a stream is cut (`pattern_set`): a needle is short, a guard reads
at most `reach` bytes from the beginning of the needle, and both look at most two bytes back.

Sources: ISO/IEC 7812-1 and the card networks' published ranges; the SWIFT IBAN registry, release 101; RFC 7468 and
OpenSSH's PROTOCOL.key for private keys; RFC 7515 and RFC 7519 for JWTs; GitHub's "Behind GitHub's new authentication
token formats" for the CRC-32; the vendors' documentation of their prefixes for the rest.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Callable

import msgspec

from sidestep.model.inspection import Builtin

MAX_REACH = 1000
"""Bytes that a guard may read; less than the overlap of two windows of a stream (`pattern_set.OVERLAP`)."""
LOOK_BEHIND = 2
"""Bytes before the beginning of a secret that needle and guard may look at."""

Guard = Callable[[bytes, int], bool]
"""(text, where the secret would begin) -> whether there is a secret."""


class BuiltinPattern(msgspec.Struct, frozen=True):
    """The secret begins where the needle does, or where its group does if it has one.

    `most` bounds the work: the needles in one window (4 KiB) whose guard is asked.
    """

    needle: bytes
    guard: Guard
    reach: int
    most: int = 256


def _token(pattern: bytes, *, kinds: int = 0) -> Guard:
    """A guard for a token of this form that has at least so many different characters, to tell it from a placeholder.

    The group `secret`, where there is one, is what is counted.
    """
    form = re.compile(pattern)
    group = "secret" if "secret" in form.groupindex else 0

    def guard(text: bytes, at: int) -> bool:
        found = form.match(text, at)
        return found is not None and len(set(found[group] or found[0])) >= kinds

    return guard


# --- card numbers ----------------------------------------------------------------------------------------------------

_CARD = re.compile(
    rb"(?<![0-9A-Za-z_.%-])"
    rb"(?:[0-9]{13,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5})"
    rb"(?![0-9A-Za-z_]|[-.][0-9])"
)
"""Digits without separators, or in the groups in which cards show them, all with the same separator.

Digits in a longer word, in a number with a point or in a chain of hyphens are none of a card's.
"""
_ISSUERS = (
    (b"4", b"4", (13, 16, 19)),  # Visa
    (b"51", b"55", (16,)),  # Mastercard
    (b"2221", b"2720", (16,)),  # Mastercard
    (b"34", b"34", (15,)),  # American Express
    (b"37", b"37", (15,)),  # American Express
    (b"6011", b"6011", (16, 19)),  # Discover
    (b"644", b"659", (16, 19)),  # Discover
    (b"622126", b"622925", (16, 19)),  # UnionPay in Discover's network
    (b"62", b"62", (16, 17, 18, 19)),  # UnionPay
    (b"3528", b"3589", (16, 19)),  # JCB
    (b"300", b"305", (14, 16, 19)),  # Diners Club
    (b"3095", b"3095", (14, 16, 19)),  # Diners Club
    (b"36", b"36", (14, 16, 19)),  # Diners Club
    (b"38", b"39", (14, 16, 19)),  # Diners Club
    (b"2200", b"2204", (16, 19)),  # Mir
)
"""(first prefix, last prefix, lengths). Prefixes of one row are equally long, so they compare as text."""
_VALUES = bytes(digit - 48 if 48 <= digit <= 57 else 0 for digit in range(256))
_DOUBLED = bytes((2 * digit if digit < 5 else 2 * digit - 9) if digit < 10 else 0 for digit in range(256))


def is_card_number(digits: bytes) -> bool:
    """Whether these ASCII digits, without separators, are a card number: issuer, length, Luhn (ISO/IEC 7812-1)."""
    for first, last, lengths in _ISSUERS:
        if len(digits) in lengths and first <= digits[: len(first)] <= last:
            break
    else:
        return False
    values = digits.translate(_VALUES)
    return (sum(values[-1::-2]) + sum(values[-2::-2].translate(_DOUBLED))) % 10 == 0


def _card(text: bytes, at: int) -> bool:
    found = _CARD.match(text, at)
    return found is not None and is_card_number(found[0].translate(None, b" -"))


# --- bank accounts ---------------------------------------------------------------------------------------------------

_BBANS = {
    "AD": "8n12c", "AE": "19n", "AL": "8n16c", "AT": "16n", "AZ": "4a20c", "BA": "16n", "BE": "12n", "BG": "4a6n8c",
    "BH": "4a14c", "BI": "23n", "BR": "23n1a1c", "BY": "4c4n16c", "CH": "5n12c", "CR": "18n", "CY": "8n16c",
    "CZ": "20n", "DE": "18n", "DJ": "23n", "DK": "14n", "DO": "4c20n", "EE": "16n", "EG": "25n", "ES": "20n",
    "FI": "14n", "FK": "2a12n", "FO": "14n", "FR": "10n11c2n", "GB": "4a14n", "GE": "2a16n", "GI": "4a15c",
    "GL": "14n", "GR": "7n16c", "GT": "24c", "HN": "4a20n", "HR": "17n", "HU": "24n", "IE": "4a14n", "IL": "19n",
    "IQ": "4a15n", "IS": "22n", "IT": "1a10n12c", "JO": "4a4n18c", "KW": "4a22c", "KZ": "3n13c", "LB": "4n20c",
    "LC": "4a24c", "LI": "5n12c", "LT": "16n", "LU": "3n13c", "LV": "4a13c", "LY": "21n", "MC": "10n11c2n",
    "MD": "20c", "ME": "18n", "MK": "3n10c2n", "MN": "16n", "MR": "23n", "MT": "4a5n18c", "MU": "4a19n3a",
    "NI": "4a20n", "NL": "4a10n", "NO": "11n", "OM": "3n16c", "PK": "4a16c", "PL": "24n", "PS": "4a21c",
    "PT": "21n", "QA": "4a21c", "RO": "4a16c", "RS": "18n", "RU": "14n15c", "SA": "2n18c", "SC": "4a20n3a",
    "SD": "14n", "SE": "20n", "SI": "15n", "SK": "20n", "SM": "1a10n12c", "SO": "19n", "ST": "21n", "SV": "4a20n",
    "TL": "19n", "TN": "20n", "TR": "6n16c", "UA": "6n19c", "VA": "18n", "VG": "4a16n", "XK": "16n", "YE": "4a4n18c",
}  # fmt: skip
"""The structure of each country's account numbers: n digits, a letters, c either (SWIFT IBAN registry)."""
_CLASSES = {"n": "[0-9]", "a": "[A-Z]", "c": "[0-9A-Z]"}


def _bban(structure: str) -> re.Pattern[bytes]:
    parts = re.findall(r"([0-9]+)([nac])", structure)
    return re.compile("".join(f"{_CLASSES[kind]}{{{length}}}" for length, kind in parts).encode())


_ACCOUNTS = {country.encode(): _bban(structure) for country, structure in _BBANS.items()}
_IBAN = re.compile(
    rb"(?<![0-9A-Za-z_+/-])"
    rb"([A-Z]{2}[0-9]{2}(?:[0-9A-Z]{11,30}|(?: [0-9A-Z]{4}){2,7}(?: [0-9A-Z]{1,4})?))"
    rb"(?![0-9A-Za-z_+/=-])"
)


def is_iban(text: bytes) -> bool:
    """Whether this is an IBAN without blanks: country, length, structure, check digits (ISO 13616, mod 97)."""
    account = _ACCOUNTS.get(text[:2])
    if account is None or account.fullmatch(text, 4) is None:
        return False
    return int("".join(str(int(chr(each), 36)) for each in text[4:] + text[:4])) % 97 == 1


def _iban(text: bytes, at: int) -> bool:
    found = _IBAN.match(text, at)
    if found is None:
        return False
    whole = found[1].replace(b" ", b"")
    if is_iban(whole):
        return True
    # Words in capitals may follow an IBAN in groups: those that the country's length leaves over are not its own.
    groups = found[1].split(b" ")
    return any(is_iban(b"".join(groups[:count])) for count in range(4, len(groups)))


# --- keys and tokens -------------------------------------------------------------------------------------------------

_BREAK = rb"(?:\\r|\\n|\s){1,4}"
"""The end of a line, also as JSON and shell scripts write it."""
_JWT = re.compile(rb"(?<![A-Za-z0-9_-])(eyJ[A-Za-z0-9_-]{10,500})\.[A-Za-z0-9_-]{10}")
_PYPI = re.compile(rb"pypi-([A-Za-z0-9_-]{64})")
_CHECKED = re.compile(rb"(?:gh[opusr]|npm)_([A-Za-z0-9]{30})([A-Za-z0-9]{6})(?![A-Za-z0-9])")
_BASE62 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def decoded_base64url(text: bytes) -> bytes | None:
    """Return the decoded text, whose padding may be missing (RFC 7515, section 2); None when it is not base64url."""
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        return None


def _jwt(text: bytes, at: int) -> bool:
    """The header of a JWT is a JSON object that names its algorithm (RFC 7515, section 4.1.1)."""
    found = _JWT.match(text, at)
    header = decoded_base64url(found[1]) if found is not None else None
    if header is None:
        return False
    try:
        value = json.loads(header)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and isinstance(value.get("alg"), str)


def _pypi(text: bytes, at: int) -> bool:
    """A macaroon, version 2, whose location is pypi.org or test.pypi.org."""
    found = _PYPI.match(text, at)
    macaroon = decoded_base64url(found[1]) if found is not None else None
    return macaroon is not None and macaroon.startswith((b"\x02\x01\x08pypi.org", b"\x02\x01\x0dtest.pypi.org"))


def checksum62(text: bytes) -> bytes:
    """The last six characters of a token of GitHub or npm: the CRC-32 of the 30 before them, in base 62."""
    number = zlib.crc32(text)
    digits = bytearray()
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return bytes(reversed(digits))


def _checked_token(text: bytes, at: int) -> bool:
    found = _CHECKED.match(text, at)
    return found is not None and checksum62(found[1]) == found[2]


_fine_grained = _token(rb"github_pat_(?P<secret>[A-Za-z0-9]{22}_[A-Za-z0-9]{59})(?![A-Za-z0-9_])", kinds=16)


def _github(text: bytes, at: int) -> bool:
    return _checked_token(text, at) or _fine_grained(text, at)


_private_key = _token(
    rb"-----BEGIN (?:[A-Z0-9]{2,16} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
    + _BREAK
    + rb"(?:[A-Za-z-]{2,24}: ?[^\r\n\\]{0,100}"
    + _BREAK
    + rb"){0,4}(?P<secret>[A-Za-z0-9+/]{40})",
    kinds=12,
)
_aws = _token(rb"(?:AKIA|ASIA|ABIA|ACCA)(?P<secret>(?![A-Z2-7]{9}EXAMPLE)[A-Z2-7]{16})(?![A-Za-z0-9])", kinds=7)
_aws_secret = _token(
    rb"(?i:aws_?secret_?(?:access_?)?key)[\"']?\s{0,4}(?:[:=]|=>)\s{0,4}[\"']?"
    rb"(?P<secret>(?![A-Za-z0-9/+]{33}EXAMPLE)[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
    kinds=16,
)
_azure = _token(
    rb"(?:AccountKey=(?P<secret>[A-Za-z0-9+/]{86}==)"
    rb"|(?<![A-Za-z0-9_~.-])[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{34}(?![A-Za-z0-9_~-]))",
    kinds=16,
)
_gcp = _token(
    rb"(?<![A-Za-z0-9_-])(?:AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28}|ya29\.[A-Za-z0-9_-]{30,500})"
    rb"(?![A-Za-z0-9_-])",
    kinds=16,
)
_gitlab = _token(
    rb"(?<![A-Za-z0-9_-])gl(?:pat|dt|rt|ptt|cbt|oas|ft|soat)-(?P<secret>[A-Za-z0-9_-]{20,300}"
    rb"(?:\.[a-z0-9]{2}\.[a-z0-9]{9})?)(?![A-Za-z0-9_-])",
    kinds=10,
)
_slack = _token(
    rb"(?:xox[abeoprs]-(?:[0-9]{1,2}-)?[0-9]{9,14}-[0-9A-Za-z-]{20,200}"
    rb"|xapp-[0-9]-A[A-Z0-9]{8,12}-[0-9]{9,14}-[0-9a-f]{64}"
    rb"|hooks\.slack\.com/(?:services|workflows)/T[A-Z0-9]{8,12}/[AB][A-Z0-9]{8,12}/[A-Za-z0-9/]{24,60})",
    kinds=14,
)
_stripe = _token(rb"(?<![A-Za-z0-9_])(?:sk|rk)_live_(?P<secret>[0-9A-Za-z]{24,247})(?![0-9A-Za-z_])", kinds=12)

PATTERNS: dict[Builtin, BuiltinPattern] = {
    Builtin.CARD_NUMBER: BuiltinPattern(
        rb"(?:\A|[^0-9A-Za-z_.%-])"
        rb"((?:4[0-9]{3}|5[1-5][0-9]{2}|2[2-7][0-9]{2}|3[0-9]{3}|6[0-9]{3})[ -]?[0-9]{4,6}[ -]?[0-9]{3})",
        _card,
        reach=26,
        most=64,
    ),
    Builtin.IBAN: BuiltinPattern(rb"\b[A-Z]{2}[0-9]{2} ?[0-9A-Z]{4} ?[0-9A-Z]{4} ?[0-9A-Z]{3}", _iban, reach=48),
    Builtin.PRIVATE_KEY: BuiltinPattern(
        rb"-----BEGIN (?:[A-Z0-9]+ ){0,2}PRIVATE KEY", _private_key, reach=660, most=64
    ),
    Builtin.JWT: BuiltinPattern(rb"\beyJ[A-Za-z0-9_-]{10}", _jwt, reach=520),
    Builtin.AWS_CREDENTIAL: BuiltinPattern(
        rb"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}|(?i:aws_?secret_?(?:access_?)?key)",
        lambda text, at: _aws(text, at) or _aws_secret(text, at),
        reach=80,
    ),
    Builtin.AZURE_CREDENTIAL: BuiltinPattern(
        rb"AccountKey=[A-Za-z0-9+/]|[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{8}", _azure, reach=102
    ),
    Builtin.GCP_CREDENTIAL: BuiltinPattern(
        rb"AIza[A-Za-z0-9_-]{8}|GOCSPX-[A-Za-z0-9_-]{8}|ya29\.[A-Za-z0-9_-]{8}", _gcp, reach=510
    ),
    Builtin.GITHUB_TOKEN: BuiltinPattern(rb"gh[opusr]_[A-Za-z0-9]{8}|github_pat_[A-Za-z0-9]{8}", _github, reach=96),
    Builtin.GITLAB_TOKEN: BuiltinPattern(rb"gl(?:pat|dt|rt|ptt|cbt|oas|ft|soat)-[A-Za-z0-9_-]{8}", _gitlab, reach=330),
    Builtin.NPM_TOKEN: BuiltinPattern(rb"npm_[A-Za-z0-9]{8}", _checked_token, reach=44),
    Builtin.PYPI_TOKEN: BuiltinPattern(rb"pypi-AgE[A-Za-z0-9_-]{8}", _pypi, reach=72),
    Builtin.SLACK_TOKEN: BuiltinPattern(
        rb"xox[abeoprs]-[0-9]|xapp-[0-9]-A|hooks\.slack\.com/(?:services|workflows)/T", _slack, reach=240
    ),
    Builtin.STRIPE_KEY: BuiltinPattern(rb"[sr]k_live_[0-9A-Za-z]{8}", _stripe, reach=260),
}
"""Every built-in pattern. Needles are read as Latin-1, that is, byte by byte."""
