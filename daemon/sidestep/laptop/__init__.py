"""The developer's side of a session: registration, the CLI's end of tunnels, and connections to the handler."""
