"""Certificates and keys: read by children, judged there; the daemon holds facts only."""
