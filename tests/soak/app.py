"""An app that holds thousands of connections: `python -m tests.soak.app PORT`. Answers every request as `app`.

A connection that begins with a zero byte is never read any further.
"""

from __future__ import annotations

import asyncio
import resource
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nX-Served-By: app\r\nContent-Length: 0\r\n\r\n"


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        if await reader.readexactly(1) == b"\0":
            await asyncio.Event().wait()
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    """Serve until killed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with await asyncio.start_server(_serve, "0.0.0.0", port, backlog=4096) as server:
        print("listening", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
