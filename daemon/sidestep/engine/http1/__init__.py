"""The HTTP/1 relay: a decision per request, every byte as it came."""
