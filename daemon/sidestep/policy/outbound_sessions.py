"""What sessions may ask of connections that pods make. Pure.

Such a session listens: it gets records, heads of requests, or a capture. Where no policy opens a connection, what can
be seen of it are its ends, its name, its ClientHello, and each request of HTTP in clear; a capture has its bytes
as they passed.
"""

from __future__ import annotations

from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept, Kind, Snap


def check_egress(intercept: Intercept) -> None:
    """Raise RefusedError for a session about connections that pods make which could not be served."""
    if not intercept.egress:
        return
    listens = intercept.heads_only or intercept.records or intercept.capture
    if intercept.kind is not Kind.WIRETAP or not listens:
        raise RefusedError("of connections that pods make there are flows, inspections and captures, and no copies")
    if intercept.port:
        raise RefusedError("a session about connections that pods make is about all ports; leave the port out")
    if intercept.reset_existing:
        raise RefusedError("connections that pods have made already cannot be reset")
    if intercept.capture is Snap.HEADS or (intercept.capture and not intercept.filter.is_global):
        raise RefusedError(
            "connections that pods make are captured as they pass, encrypted where the pod encrypts: --snap all and no "
            "filter. Heads of their requests, and filters on them, need connections that are opened"
        )
