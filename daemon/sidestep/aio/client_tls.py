"""The one way in which client contexts with `ssl`'s own defaults are made.

Python 3.13 adds `VERIFY_X509_STRICT` to `ssl.create_default_context`: RFC 5280 to the letter, which refuses authorities
without a keyUsage or an authority key identifier. Authorities of clusters and of companies often lack them, and Go,
curl, nginx and earlier Pythons accept those. The same cluster must be reached from every supported Python, so the flag
is cleared; signatures, names, dates and basic constraints are verified as ever.
"""

from __future__ import annotations

import ssl
from pathlib import Path


def default_client_context(*, cafile: str | Path | None = None, cadata: str | None = None) -> ssl.SSLContext:
    """Return a context that verifies servers against these authorities (PEM), or the system's if none is given.

    Raises OSError (ssl.SSLError among them) for a file that cannot be read or holds no certificates.
    """
    path = None if cafile is None else str(cafile)
    context = ssl.create_default_context(cafile=path, cadata=cadata)  # noqa: TID251 - here it is made the same
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
