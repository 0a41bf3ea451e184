"""The node daemon: composition root of the privileged side."""
