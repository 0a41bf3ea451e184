"""The target pods of a node: listeners, steering and proxies, made and given back together."""
