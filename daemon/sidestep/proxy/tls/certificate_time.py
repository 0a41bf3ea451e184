"""Times of certificates, as `ssl` writes them, in seconds since 1970.

`ssl.cert_time_to_seconds` imports modules when it is first called. A pod proxy can import nothing any more, so it is
called once here, while the zygote imports this module.
"""

from __future__ import annotations

import ssl


def certificate_seconds(text: str) -> float | None:
    """Return the seconds since 1970 that a text such as `Jan  5 09:34:43 2030 GMT` says; None if it says none."""
    try:
        return ssl.cert_time_to_seconds(text)
    except (ValueError, OverflowError):
        return None


certificate_seconds("Jan  1 00:00:00 2000 GMT")
