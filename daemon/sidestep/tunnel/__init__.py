"""The tunnel between node daemon and CLI: HTTP/2 in which the daemon is the client (docs/design.md, "Sessions")."""
