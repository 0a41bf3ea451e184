"""Bytes in and out of sockets: the event loop, plain and TLS streams, splice(2)."""
