"""Translates HTTP/2 of the tunnel to HTTP/1.1 for a handler that does not speak HTTP/2.

channel          the tunnel's side: bytes of an HTTP/2 client in, bytes of an HTTP/2 server out
exchange         one request and its answer, between a stream and a connection to the handler
connection_pool  HTTP/1.1 connections to the handler, kept for further requests
fields           conversion of header blocks between the versions; pure
"""
