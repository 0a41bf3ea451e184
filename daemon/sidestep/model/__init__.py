"""Value types and the error root; the standard library and msgspec only."""
