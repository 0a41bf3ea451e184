"""Keeps h2 from making the text of all data that it receives.

h2 hands the representation of each frame to its logger, whether or not that shows anything, and hyperframe makes that
of a DATA frame from all of its bytes, in hexadecimal digits. For a GiB through the tunnel this was a third of what the
command line needed (`docs/performance.md`). What frames carry has no place in a log either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyperframe.frame import DataFrame

if TYPE_CHECKING:
    from hyperframe.frame import Frame


def _shown(frame: Frame) -> str:
    return f"{type(frame).__name__}(stream_id={frame.stream_id})"


def quieten() -> None:
    """Have DATA frames represented by their stream alone, in this process. Repeating it has no effect."""
    DataFrame.__repr__ = _shown  # type: ignore[method-assign]
