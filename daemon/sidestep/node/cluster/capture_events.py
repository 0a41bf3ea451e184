"""Events about captures: who captures what and for how long, in the namespace of the workload.

`CaptureStarted` is written before the capture is accepted: without the Event no node serves it. `CaptureEnded` follows
from each node that served it, once the resource is gone or its bounds are reached; one that cannot be written is lost.
The owner is a claim, as in the resource: the API server's audit log knows who created it. What a user can make long,
the filter, stands last: an Event's message is cut at its end.
"""

from __future__ import annotations

from sidestep.config.durations import format_duration
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.events import EventSubject, post
from sidestep.kube.resource_fields import GROUP, VERSION
from sidestep.kube.session_specs import DEFINITIONS
from sidestep.model.errors import ClusterError
from sidestep.model.intercept import Intercept
from sidestep.model.text import harmless
from sidestep.node.sessions.capture_bounds import CaptureBounds
from sidestep.node.sessions.capture_log import most_of, what_is_captured
from sidestep.observability.logs import get_logger

STARTED, ENDED = "CaptureStarted", "CaptureEnded"


class CaptureEvents:
    """Posts Events of one node."""

    def __init__(self, api: Api, *, node: str) -> None:
        self._api = api
        self._node = node
        self._log = get_logger("events")

    async def started(self, intercept: Intercept) -> str:
        """Say that a capture is about to be accepted; returns why the API server does not take the Event, or "".

        Raises UnreachableClusterError.
        """
        text = f"{_owner(intercept)} captures, for at most {most_of(intercept)}, {what_is_captured(intercept)}"
        try:
            await self._post(intercept, STARTED, text)
        except ApiError as error:
            return f"the Event that tells of the capture cannot be written, and without it nothing is captured: {error}"
        return ""

    async def ended(self, intercept: Intercept, bounds: CaptureBounds) -> None:
        """Say what a capture was on this node."""
        spent = f"for {format_duration(round(bounds.seconds, 1))}, {bounds.sent} bytes"
        text = f"{_owner(intercept)} captured, {spent} from node {self._node}, {what_is_captured(intercept)}"
        try:
            await self._post(intercept, ENDED, text)
        except ClusterError as error:
            self._log.warning("event not written", subject=f"Capture {intercept.display}", reason=str(error))

    async def _post(self, intercept: Intercept, reason: str, message: str) -> None:
        kind = DEFINITIONS[intercept.session_kind].kind
        subject = EventSubject(f"{GROUP}/{VERSION}", kind, intercept.namespace, intercept.name, intercept.uid)
        await post(self._api, subject, reason=reason, message=harmless(message), node=self._node, warning=True)


def _owner(intercept: Intercept) -> str:
    return intercept.owner or "somebody"
