"""Tests of the whole product with real peers in real namespaces."""
