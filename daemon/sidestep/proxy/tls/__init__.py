"""TLS in the pod proxy: handshakes, credentials, and whether both sides suit each other."""
