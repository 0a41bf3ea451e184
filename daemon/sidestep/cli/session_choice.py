"""Which session `sidestep leave` means: `NAME`, `KIND/NAME`, `NS/NAME` or `NS/KIND/NAME`.

Without a kind it is the intercept of that name, else the only session of it. Somebody's flows are ended only by who
says so. A namespace with the name of a kind is given with -n.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from sidestep.model.errors import RefusedError
from sidestep.model.intercept import FLOWS, SessionKind

KINDS = (*(kind.value for kind in SessionKind), FLOWS)
"""What sessions are called, in the order in which one is taken whose kind is not given."""


class Wanted(msgspec.Struct, frozen=True):
    """A session as it was written. `namespace` and `kind` are empty where they were not."""

    name: str
    kind: str = ""
    namespace: str = ""


def parse_session(text: str) -> Wanted | None:
    """Return what is meant; None for what is no name of a session."""
    *before, name = text.split("/")
    if not all((*before, name)) or len(before) > 2:
        return None
    kind = _kind(before[-1]) if before else ""
    if len(before) == 2:
        return Wanted(name, kind, before[0]) if kind else None
    if before and not kind:
        return Wanted(name, namespace=before[0])
    return Wanted(name, kind)


def choose(wanted: Wanted, there: Iterable[str], namespace: str) -> str:
    """Return the kind of the session that is meant, of the kinds that `there` has under its name.

    Raises RefusedError when there is none, when there are several, and for flows that were not named.
    """
    kinds = sorted(set(there), key=_rank)
    display = f"{namespace}/{wanted.name}"
    if wanted.kind:
        if wanted.kind in kinds:
            return wanted.kind
        others = f" ({display} is {_either(kinds)})" if kinds else ""
        raise RefusedError(f"there is no {wanted.kind} {display}{others}; sidestep status shows those there are")
    if not kinds:
        raise RefusedError(f"there is no session {display}; sidestep status shows those there are")
    if kinds == [FLOWS]:
        raise RefusedError(
            f"{display} is somebody's flows; to end it: sidestep leave {FLOWS}/{wanted.name} -n {namespace}"
        )
    named = [kind for kind in kinds if kind != FLOWS]
    if named[0] != SessionKind.INTERCEPT and len(named) > 1:
        choices = " or ".join(f"{kind}/{wanted.name}" for kind in named)
        raise RefusedError(f"{display} is {_either(named)}: write {choices}")
    return named[0]


def _kind(word: str) -> str:
    """Return the kind that a word means, singular or plural as in `kubectl get`; empty for none."""
    return next((kind for kind in KINDS if word in {kind, f"{kind}s", f"{kind}es", f"pod{kind}", f"pod{kind}es"}), "")


def _rank(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def _either(kinds: Sequence[str]) -> str:
    return " and ".join(_with_article(kind) for kind in kinds)


def _with_article(kind: str) -> str:
    if kind == FLOWS:
        return "somebody's flows"
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"
