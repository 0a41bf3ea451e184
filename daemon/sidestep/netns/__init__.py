"""Network namespaces: identity, sockets inside, socket diagnosis, files under a container root."""
