"""eBPF sk_lookup: compile, load, attach, steer, count."""
