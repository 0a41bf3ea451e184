"""TLS in the pod proxy: handshakes, credentials, verification of names, and why TLS is not opened."""
