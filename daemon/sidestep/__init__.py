"""Sidestep: take the requests meant for one Kubernetes workload to a process on your machine."""

__version__ = "0.1.0"
