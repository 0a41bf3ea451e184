"""The control channel between node daemon, zygote and pod proxy."""
