"""The target pods of a node: opens, changes and releases their listeners, steering and proxies."""
