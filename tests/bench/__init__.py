"""Benchmarks against peers: `python -m tests.bench [--quick]`.

Real parts only: nginx as the app and haproxy as the peer stand in the pod's namespace, wrk and h2load come from the
client's. The proxy under test has core 1 for itself; app and load share core 0. Every figure is a ratio between two
runs made one after the other, many times in turn, because the machines' speed drifts; the median is quoted.

    cpu      CPU seconds of a process tree, from the scheduler's own clock
    load     one run of wrk or h2load
    arena    the parts, pinned
    rows     what is compared, with its budget
    report   the table
"""
