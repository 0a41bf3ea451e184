"""The shell of the mirror: when copies are made, and their connections to handlers."""
