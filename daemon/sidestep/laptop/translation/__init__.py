"""HTTP/2 towards the tunnel, HTTP/1.1 towards a handler that knows nothing else.

channel      what the tunnel's pump sees: bytes of an HTTP/2 client in, bytes of an HTTP/2 server out
exchange     one request and its answer, between a stream and a connection to the handler
connections  HTTP/1.1 connections to the handler, kept for the next request
fields       header blocks of one version as those of the other; pure
"""
