"""An app that puts what clients send into SQL: SQLite behind a small server, with a table that nobody should read.

GET  /items?id=1       a number in a WHERE clause; errors of SQLite are shown
POST /search           a form with `q`, a text in a LIKE
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

SECRET = "a-token-that-nobody-may-read"
TABLE = "secrets"


class VulnerableApp:
    """The server; a context manager. `guard` sees each request first; it returns whether it may pass."""

    def __init__(
        self,
        guard: Callable[[BaseHTTPRequestHandler, bytes], bool] = lambda _request, _body: True,
        *,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.guard = guard
        self.served = 0
        self.refused = 0
        self._lock = threading.Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.executescript(
            f"CREATE TABLE items (id INTEGER, name TEXT); CREATE TABLE {TABLE} (token TEXT);"
            f"INSERT INTO items VALUES (1, 'shoe'), (2, 'hat'); INSERT INTO {TABLE} VALUES ('{SECRET}');"
        )
        app = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                query = parse_qs(urlsplit(self.path).query)
                app.serve(self, b"", f"SELECT name FROM items WHERE id = {query.get('id', ['0'])[0]}")

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                text = parse_qs(body.decode(errors="replace")).get("q", [""])[0]
                app.serve(self, body, f"SELECT name FROM items WHERE name LIKE '%{text}%'")

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(address, Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.port = self._server.server_port

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        self._database.close()

    def serve(self, request: BaseHTTPRequestHandler, body: bytes, statement: str) -> None:
        """Answer one request."""
        with self._lock:
            if not self.guard(request, body):
                self.refused += 1
                status, text = 403, "refused"
            else:
                self.served += 1
                try:
                    rows = self._database.execute(statement).fetchall()
                    status, text = 200, "\n".join(str(row[0]) for row in rows)
                except sqlite3.Error as error:
                    status, text = 500, f"SQLite error: {error}"
        answer = f"<html><body><pre>{text}</pre></body></html>".encode()
        request.send_response(status)
        request.send_header("Content-Type", "text/html")
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)
