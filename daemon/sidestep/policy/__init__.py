"""Pure matching and choosing: which request goes where, what a port speaks, who conflicts with whom."""
