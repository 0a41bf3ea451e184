"""The pod proxies of a node, as processes: forked, told, heard, replaced."""
