"""The daemon's side of inspectors: one zygote per node, an inspector for each pod that wants one."""
