"""Confines a process of ours: capabilities, resource limits, system calls, and the calls of the C library for it."""
