"""Certificates and keys: child processes read and validate them; the daemon holds public facts only."""
