"""The HTTP/2 relay: frames pass, streams that a rule wants go to its handler."""
