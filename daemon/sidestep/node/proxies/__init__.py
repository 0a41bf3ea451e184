"""The pod proxies of a node as processes: forks them, tells them their state, reads their messages, replaces them."""
