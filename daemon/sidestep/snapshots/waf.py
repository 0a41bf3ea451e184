"""What a pod proxy and its inspector have to know of the web application firewall of a port."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from sidestep.model.waf import MAX_EXEMPTIONS

MAX_CUSTOM: Final = 48 * 1024
"""Bytes of SecLang of one profile."""

MAX_REGEXES: Final = 1024

MAX_OUTWARD: Final = 32
"""Profiles of what a pod sends: those of its policies, and joined ones. Each takes an inspector some 35 KiB, and a
millisecond when it is made."""


class Exemption(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A rule of CRS that does not look at some requests, or at one of their arguments.

    `path` is a literal path as sent, or with `is_prefix` how it begins; "" for all paths. `parameter` is the name of an
    argument, "" for the whole request. Both are of the characters that `config.waf` allows.
    """

    rule: int
    path: Annotated[str, msgspec.Meta(max_length=512)] = ""
    is_prefix: bool = False
    parameter: Annotated[str, msgspec.Meta(max_length=128)] = ""

    def includes(self, other: Exemption) -> bool:
        """Whether it is as wide as another one, or wider."""
        same_path = not self.path or (self.path, self.is_prefix) == (other.path, other.is_prefix)
        inside = self.is_prefix and other.path.startswith(self.path)
        return self.rule == other.rule and (same_path or inside) and self.parameter in ("", other.parameter)


class Profile(msgspec.Struct, frozen=True, array_like=True):
    """What requests of one port are judged by: settings of the Core Rule Set, and rules of the policies' own.

    `arguments` is how many arguments (of query, form, JSON, multipart) a request may have before the engine sees it;
    `custom` is SecLang of the form that `policy.seclang` makes.
    """

    paranoia: Annotated[int, msgspec.Meta(ge=1, le=4)]
    threshold: Annotated[int, msgspec.Meta(ge=1, le=10000)]
    arguments: Annotated[int, msgspec.Meta(ge=1, le=10000)]
    excluded: Annotated[tuple[int, ...], msgspec.Meta(max_length=1024)] = ()
    custom: Annotated[str, msgspec.Meta(max_length=MAX_CUSTOM)] = ""
    regexes: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_REGEXES)] = ()
    """Those of the custom rules: the engine takes a rule whose regex is none, and never applies it."""
    responses: bool = False
    """Whether responses are judged, too."""
    exemptions: Annotated[tuple[Exemption, ...], msgspec.Meta(max_length=MAX_EXEMPTIONS)] = ()
    custom_responses: Annotated[str, msgspec.Meta(max_length=MAX_CUSTOM)] = ""
    """Custom rules about responses; with `custom` no more than MAX_CUSTOM bytes."""


class PortWaf(msgspec.Struct, frozen=True, array_like=True):
    """What applies to a port, joined from all of its policies (`policy.waf`).

    `names` are the policies with a firewall, in order; custom rules have the number of their place among them.
    `body_bytes` of a body are judged, within `seconds`; `blocks_over_limit` says what becomes of a longer one.
    `blocking` and `closing` are the policies that refusals name.
    """

    names: tuple[str, ...]
    profile: Profile
    body_bytes: int
    seconds: float
    blocks_over_limit: bool
    enforces: bool
    closes: bool
    blocking: str
    closing: str
