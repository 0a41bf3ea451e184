"""Small asyncio primitives: named task groups, message sockets, pumps."""
