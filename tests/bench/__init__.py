"""Benchmarks against peers: `python -m tests.bench [--quick]`.

Real parts only: nginx as the app and the peers (haproxy, Go's ReverseProxy, mitmproxy) stand in the pod's namespace,
wrk and h2load come from the client's. The proxy under test has core 1 for itself; app and load share core 0. What is
compared are two runs made one after the other, many times in turn, because the machines' speed drifts; the median of
the ratios is quoted.

    cpu         CPU seconds of a process tree, from the scheduler's own clock
    load        one run of wrk or h2load
    arena       the parts, pinned
    rows        what is compared in pairs, with its budget
    extras      throughput, latency, memory, times, a hundred pods
    growth      the cost of a request with more connections, with more intercepts
    inspection  what inspection policies cost
    sessions    intercepts without the start of a command
    report      JSON and the chart
"""
