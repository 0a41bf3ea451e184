"""Checks that a regex is one, by PCRE2 (pcre2api(3)): libmodsecurity takes any text, and never applies such a rule."""

from __future__ import annotations

import ctypes
from typing import Final

from sidestep.model.errors import ConfigurationError

LIBRARY: Final = "libpcre2-8.so.0"
"""What libmodsecurity is linked with."""
_OPTIONS: Final = 0x00000020 | 0x00000400
"""PCRE2_DOTALL, PCRE2_MULTILINE: as libmodsecurity compiles."""


class Regexes:
    """PCRE2. Raises ConfigurationError where it is not installed."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise ConfigurationError(f"{LIBRARY} cannot be loaded: {error}") from error
        self._compile = library.pcre2_compile_8
        self._compile.restype = ctypes.c_void_p
        self._compile.argtypes = (
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint32,
            ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_size_t), ctypes.c_void_p,
        )  # fmt: skip
        self._free = library.pcre2_code_free_8
        self._free.restype, self._free.argtypes = None, (ctypes.c_void_p,)
        self._message = library.pcre2_get_error_message_8
        self._message.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)

    def check(self, regex: str) -> None:
        """Compile it once. Raises ConfigurationError with PCRE's reason and where it stands."""
        text = regex.encode()
        number, place = ctypes.c_int(), ctypes.c_size_t()
        code = self._compile(text, len(text), _OPTIONS, ctypes.byref(number), ctypes.byref(place), None)
        if code:
            self._free(code)
            return
        message = ctypes.create_string_buffer(256)
        self._message(number, message, len(message))
        reason = message.value.decode("ascii", "replace")
        raise ConfigurationError(f"the regex {regex[:80]!r} is none: {reason} at character {place.value}")
