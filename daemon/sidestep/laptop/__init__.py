"""The developer's side of a session: tunnel server and handler dials."""
