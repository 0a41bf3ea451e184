"""Interfaces of the node daemon: the unix socket for command lines, health, metrics, status."""
