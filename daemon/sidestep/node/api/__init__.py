"""What the node daemon shows: the unix socket of command lines, health, metrics."""
