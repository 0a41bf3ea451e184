"""The one error root, with a subclass for each party that can be at fault.

Every error carries data (a pod, an annotation, a wire code); `str(error)` is one line that says what is wrong and,
where the reader can act, what to do. The adapter that calls another library maps its exceptions to these once; text is
made only at the edge.
"""

from __future__ import annotations

import os


class SidestepError(Exception):
    """Root of everything Sidestep raises on purpose."""


class ConfigurationError(SidestepError):
    """What a person wrote cannot be used: a manifest, an annotation, a filter, an option.

    `subject` names the thing ("annotation telepresence.io/… of pod shop/orders"), `value` quotes what stood there.
    """

    def __init__(self, reason: str, *, subject: str = "", value: str | None = None) -> None:
        self.reason = reason
        self.subject = subject
        self.value = value
        quoted = "" if value is None else f" {value!r}"
        super().__init__(f"{subject}{quoted}: {reason}" if subject or quoted else reason)


class RefusedError(SidestepError):
    """A rule says no: a conflict, a port that cannot be filtered, a namespace that may not be steered."""


class PeerError(SidestepError):
    """The other end of a connection broke a protocol. `code` is the wire error code where the protocol has one."""

    def __init__(self, reason: str, *, code: int | None = None) -> None:
        self.code = code
        super().__init__(reason)


class KernelError(SidestepError):
    """A system call failed. `call` names it, `errno` is the kernel's answer, `hint` says what to do about it."""

    def __init__(self, call: str, errno: int, *, doing: str = "", hint: str = "") -> None:
        self.call = call
        self.errno = errno
        context = f" while {doing}" if doing else ""
        advice = f" ({hint})" if hint else ""
        super().__init__(f"{call}{context}: {os.strerror(errno)}{advice}")


class ClusterError(SidestepError):
    """The Kubernetes API refused or could not be reached."""


class BugError(SidestepError):
    """An invariant of ours does not hold. The connection or pod concerned is released; the app is served."""
