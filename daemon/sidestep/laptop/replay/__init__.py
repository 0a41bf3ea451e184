"""Sends requests that were recorded to a server, one after the other, and reads its answers.

message   a request to send and an answer, whatever their version
target    where to: scheme, host, port, and the connection with TLS and ALPN
http1     a connection of HTTP/1.1, by h11
http2     a connection of HTTP/2, by h2
sender    sends each request in its version, on connections that are kept
"""
