"""Sans-IO relays: bytes and `now` in, bytes and decisions out."""
