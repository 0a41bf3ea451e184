"""Sans-IO parsers: HTTP/1, HTTP/2, HPACK, ClientHello, detection."""
