"""The unix socket, sessions, tunnel and command line together, with a stand-in for the node."""
