"""EVE records of inspection on a node: checks those of pod proxies, and writes them to a file, a socket or a pipe."""
