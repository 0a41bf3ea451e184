"""Versions of the two ends of a tunnel: the command line and a node daemon need not be of one release.

Each end speaks `messages.VERSION` of the tunnel and the one before. The daemon's hello names its version, the answer
the one that is used:

    the daemon's       used
    VERSION - 1        the daemon's
    VERSION            VERSION
    VERSION + 1        VERSION; such a daemon speaks the one before its own
    any other          none, the session is refused

Within a version, what a peer does not know has no effect: unknown fields of messages are ignored, unknown events are
skipped. `difference` is the line that tells people so.
"""

from __future__ import annotations

from sidestep import __version__
from sidestep.model.errors import RefusedError
from sidestep.tunnel import messages


def common_version(daemon: int) -> int:
    """Return the version that this command and a daemon use. Raises RefusedError when they share none."""
    ours = messages.VERSION
    if abs(daemon - ours) > 1:
        raise RefusedError(
            f"the node daemon speaks version {daemon} of the tunnel, this command {ours}; "
            "use the sidestep command that belongs to the daemon"
        )
    return min(daemon, ours)


def check_answer(version: int) -> None:
    """Check the version that a session answers with. Raises RefusedError for one that this daemon does not speak."""
    ours = messages.VERSION
    if not ours - 1 <= version <= ours:
        raise RefusedError(f"the session speaks version {version} of the tunnel, this node {ours}")


def difference(daemon: str) -> str:
    """Return in one line that a daemon is of another release than this command; "" when it is of the same."""
    if daemon == __version__:
        return ""
    return f"The node daemon is sidestep {daemon[:64]}, this command {__version__}: what only one knows has no effect."
