"""Connections to the handler as the tunnel's pump sees them: TLS, datagrams, and the probe for HTTP/2 in clear text."""
