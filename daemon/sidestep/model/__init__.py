"""Value types and the error root; standard library only."""
