"""HTTP/2 with the roles turned round, between node daemon and CLI."""
