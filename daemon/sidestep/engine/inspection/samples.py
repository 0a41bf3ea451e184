"""One sampled request (`sampling`) and its answer: what is told of a request although no rule applies to it.

A sampled request passes as it does without a sample: it is neither read, held nor decoded for this. An engine notes
what it has anyway - the head of the request, the head of the answer, the length - and tells the observer once the
answer is whole. What stands in these heads is worked out by the observer, after the bytes were written.

Where rules look at the same exchange it has a `Judged` as well, and its sample is noted even if it is not sampled: a
hit on a request is told at once, before there is an answer, so the answer is told after it. Nothing further is told of
an exchange that was blocked, or whose hits are about the answer: the record of the hit says all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidestep.engine.inspection.sampling import Sampling

RequestTexts = tuple[str, bytes, bytes, bytes, bytes, bytes, bytes]
"""Protocol (as in `records.ExchangeRecord`), method, target, host, User-Agent, X-Forwarded-For and Referer; empty where
a request has none."""

NOTHING: Final = (b"", b"")
"""What is told of the head of an answer that has not come."""


class JudgedExchange(Protocol):
    """An exchange as rules see it (`judged.Judged`)."""

    is_sampled: bool
    wants_answer: bool
    refusal: str | None

    @property
    def has_hit(self) -> bool:
        """Whether a rule has applied, so that the exchange was told."""

    def answered(self, sample: Sample) -> Any:
        """What is told of the answer: a `records.ExchangeRecord`."""


class Listener(Protocol):
    """Whoever is told of samples: the observer of the connection."""

    def sampled(self, sample: Sample) -> None:
        """As `records.Observer.sampled`."""

    def answered(self, record: Any) -> None:
        """As `records.Observer.answered`."""


class Sample:
    """See the module. `number` counts the requests of the connection from 0, `stream` is 0 for HTTP/1.

    `status` is None until the final head of the answer has come, and where that answer was refused; `answer` are its
    Content-Type and Location, empty where it has none; `length` are the bytes of its body without framing, None unless
    they were counted to its end.

    Subclasses set everything themselves: one is made for each request, and a call costs as much as all of that.
    """

    __slots__ = ("answer", "asked", "judged", "length", "number", "size", "status", "stream")

    number: int
    stream: int
    judged: JudgedExchange | None
    """The same exchange, as far as rules look at it."""
    asked: object
    """What all that is told of the request follows from: requests of which it is equal are told alike."""
    size: int
    """Bytes of the texts that the sample keeps in memory."""
    status: int | None
    answer: tuple[bytes, bytes]
    length: int | None

    def unanswered(self) -> None:
        """Forget the answer."""
        self.status = self.length = None
        self.answer = NOTHING

    def request(self) -> RequestTexts:
        """What is told of the request."""
        raise NotImplementedError


class SampledConnection(Protocol):
    """What samples take from the gate of their connection."""

    @property
    def observer(self) -> Listener:
        """Who is told."""

    sampling: Sampling | None
    exempt: frozenset[tuple[bytes, bytes]]

    def at_end(self, call: Callable[[], None]) -> None:
        """Have this called when the connection is over."""


def tell(observer: Listener, sample: Sample) -> None:
    """Tell a sample whose exchange is over: what is not known yet."""
    judged = sample.judged
    if judged is None:
        observer.sampled(sample)
        return
    if judged.refusal is not None:
        sample.unanswered()  # the client has got another answer
    if not judged.has_hit:
        if judged.is_sampled:
            observer.sampled(sample)
    elif judged.wants_answer and sample.status is not None:
        observer.answered(judged.answered(sample))
