"""The developer's version of the app: it answers with what the database of the cluster has in stock."""

import http.server
import os
from base64 import b64encode
from http.client import HTTPConnection
from urllib.parse import unquote, urlsplit


def database():
    """A connection to the database, which the pod makes."""
    proxy = urlsplit(os.environ["HTTPS_PROXY"])
    secret = b64encode(unquote(f"{proxy.username}:{proxy.password}").encode()).decode()
    through = HTTPConnection(proxy.hostname, proxy.port, timeout=30)
    through.set_tunnel(os.environ["DB_HOST"], 6379, {"Proxy-Authorization": f"Basic {secret}"})
    through.connect()
    return through.sock


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with database() as db, db.makefile("rwb") as redis:
            redis.write(f"AUTH {os.environ['DB_PASSWORD']}\r\nGET lamps\r\n".encode())
            redis.flush()
            _, _, lamps = (redis.readline() for _ in range(3))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"my version: %s lamps in stock\n" % lamps.strip())


http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
