"""libmodsecurity 3 by its C interface (headers/modsecurity/{modsecurity,rules_set,transaction,intervention}.h).

One `Engine` per process. `RuleSet` owns a set of rules; `Engine.judge` runs one request through one, and returns what
the library logged of it. Texts of the library are bytes, parts of which the client wrote: `rules` reads them.

The library is loaded, and the callback for its log made, before a process is locked: both map executable memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from typing import Any, Final, NamedTuple

import msgspec

from sidestep.model.errors import ConfigurationError

LIBRARY: Final = "libmodsecurity.so.3"
MAX_LINES: Final = 256
"""Lines that are kept of one request."""


class _Intervention(ctypes.Structure):
    """`ModSecurityIntervention`; `url` and `log` are the caller's to free."""

    _fields_ = (
        ("status", c_int),
        ("pause", c_int),
        ("url", c_void_p),
        ("log", c_void_p),
        ("disruptive", c_int),
    )


_LogCallback = ctypes.CFUNCTYPE(None, c_void_p, c_char_p)
_ERROR = POINTER(c_char_p)
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {  # name: result and arguments
    "msc_init": (c_void_p, ()),
    "msc_who_am_i": (c_char_p, (c_void_p,)),
    "msc_set_log_cb": (None, (c_void_p, _LogCallback)),
    "msc_create_rules_set": (c_void_p, ()),
    "msc_rules_add": (c_int, (c_void_p, c_char_p, _ERROR)),
    "msc_rules_add_file": (c_int, (c_void_p, c_char_p, _ERROR)),
    "msc_rules_merge": (c_int, (c_void_p, c_void_p, _ERROR)),
    "msc_rules_cleanup": (c_int, (c_void_p,)),
    "msc_new_transaction": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "msc_process_connection": (c_int, (c_void_p, c_char_p, c_int, c_char_p, c_int)),
    "msc_process_uri": (c_int, (c_void_p, c_char_p, c_char_p, c_char_p)),
    "msc_add_n_request_header": (c_int, (c_void_p, c_char_p, c_size_t, c_char_p, c_size_t)),
    "msc_process_request_headers": (c_int, (c_void_p,)),
    "msc_append_request_body": (c_int, (c_void_p, c_char_p, c_size_t)),
    "msc_process_request_body": (c_int, (c_void_p,)),
    "msc_add_n_response_header": (c_int, (c_void_p, c_char_p, c_size_t, c_char_p, c_size_t)),
    "msc_process_response_headers": (c_int, (c_void_p, c_int, c_char_p)),
    "msc_append_response_body": (c_int, (c_void_p, c_char_p, c_size_t)),
    "msc_process_response_body": (c_int, (c_void_p,)),
    "msc_process_logging": (c_int, (c_void_p,)),
    "msc_intervention": (c_int, (c_void_p, POINTER(_Intervention))),
    "msc_transaction_cleanup": (None, (c_void_p,)),
}


class Request(msgspec.Struct, frozen=True):
    """A request as the library sees it; method and target without NUL.

    With a `status` it is one that was answered so: fields and body are those of the answer.
    """

    method: bytes
    target: bytes
    version: bytes
    fields: Iterable[tuple[bytes, bytes]]
    client: tuple[str, int]
    server: tuple[str, int]
    body: bytes
    status: int = 0


class Findings(NamedTuple):
    """What the rules say of a request: whether one of them denies it, and the lines of the log."""

    denied: bool
    lines: list[bytes]


class Engine:
    """The library. Raises ConfigurationError where it is not installed."""

    def __init__(self) -> None:
        try:
            self._library: Any = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise ConfigurationError(f"{LIBRARY} cannot be loaded: {error}") from error
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._free = ctypes.CDLL(None).free
        self._free.restype, self._free.argtypes = None, (c_void_p,)
        self._lines: list[bytes] = []
        self._callback = _LogCallback(self._log)
        self._engine = self._library.msc_init()
        self._library.msc_set_log_cb(self._engine, self._callback)
        self.version: str = self._library.msc_who_am_i(self._engine).decode("ascii", "replace").split(" (")[0]

    def rule_set(self) -> RuleSet:
        """Make an empty rule set."""
        return RuleSet(self._library)

    def judge(self, rules: RuleSet, request: Request) -> Findings:
        """Run the phases of a request and, if anything was logged, that of logging."""
        library = self._library
        lines: list[bytes] = []
        self._lines = lines
        transaction = library.msc_new_transaction(self._engine, rules.handle, None)
        try:
            client, server = request.client, request.server
            library.msc_process_connection(transaction, client[0].encode(), client[1], server[0].encode(), server[1])
            library.msc_process_uri(transaction, request.target, request.method, request.version)
            denied = self._response(transaction, request) if request.status else self._request(transaction, request)
            if lines:
                library.msc_process_logging(transaction)
        finally:
            library.msc_transaction_cleanup(transaction)
        return Findings(denied, lines)

    def _request(self, transaction: int, request: Request) -> bool:
        """Run the phases of a request; returns whether it is denied."""
        library = self._library
        for name, value in request.fields:
            library.msc_add_n_request_header(transaction, name, len(name), value, len(value))
        library.msc_process_request_headers(transaction)
        if self._is_denied(transaction):
            return True
        if request.body:
            library.msc_append_request_body(transaction, request.body, len(request.body))
        library.msc_process_request_body(transaction)
        return self._is_denied(transaction)

    def _response(self, transaction: int, request: Request) -> bool:
        """The same of an answer. The first phase makes the settings."""
        library = self._library
        library.msc_process_request_headers(transaction)
        for name, value in request.fields:
            library.msc_add_n_response_header(transaction, name, len(name), value, len(value))
        library.msc_process_response_headers(transaction, request.status, b"HTTP/" + request.version)
        if self._is_denied(transaction):
            return True
        if request.body:
            library.msc_append_response_body(transaction, request.body, len(request.body))
        library.msc_process_response_body(transaction)
        return self._is_denied(transaction)

    def _is_denied(self, transaction: int) -> bool:
        """Whether a rule has denied the transaction; its line does not come by the callback."""
        found = _Intervention(status=200)
        denied = bool(self._library.msc_intervention(transaction, byref(found)))
        if found.log:
            self._log(None, ctypes.string_at(found.log))
        for text in (found.url, found.log):
            if text:
                self._free(text)
        return denied

    def _log(self, _data: int | None, line: bytes) -> None:
        if len(self._lines) < MAX_LINES:
            self._lines.append(line)


class RuleSet:
    """Rules and settings, in the order in which they were added. Its transactions must end before it does."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.handle: int | None = library.msc_create_rules_set()
        self.is_shared = False
        """Others use it, too: it is not to be closed."""

    def add(self, text: str) -> None:
        """Add SecLang. Raises ConfigurationError with what the library says of it."""
        error = c_char_p()
        self._check(self._library.msc_rules_add(self.handle, text.encode(), byref(error)), error)

    def add_file(self, path: str) -> None:
        """Add a file of SecLang, with those that it names relative to itself. Raises ConfigurationError."""
        error = c_char_p()
        self._check(self._library.msc_rules_add_file(self.handle, path.encode(), byref(error)), error)

    def merge(self, other: RuleSet) -> None:
        """Add all of another set, sharing its rules. Raises ConfigurationError (one id twice)."""
        error = c_char_p()
        self._check(self._library.msc_rules_merge(self.handle, other.handle, byref(error)), error)

    def close(self) -> None:
        """Give the rules back that no other set shares."""
        if self.handle is not None and not self.is_shared:
            self._library.msc_rules_cleanup(self.handle)
            self.handle = None

    @staticmethod
    def _check(result: int, error: c_char_p) -> None:
        if result < 0:
            reason = (error.value or b"no reason given").decode("utf-8", "replace")
            raise ConfigurationError(" ".join(reason.split())[:600])
