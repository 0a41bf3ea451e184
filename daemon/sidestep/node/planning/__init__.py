"""What should be steered on this node. Pure: no I/O, no clock."""
