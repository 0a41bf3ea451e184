"""Real parts for system tests: namespaces, nginx, curl, raw peers, the node daemon and the command line.

Everything here is a context manager. What one enters exists for real (a network namespace, a process, a socket); what
one leaves is gone, by its own pid or name, also when a test fails. Names carry the pid of the test run, so that runs in
parallel do not meet. Nothing sleeps for a condition: `waiting.until` polls it under a deadline.

    namespaces   PodNamespace: a pod's network namespace joined by a veth pair to a client's
    authority    private certificate authorities and leaf certificates
    processes    one child process with its log, ended by pid
    nginx        a real nginx inside a namespace
    peers        TCP, TLS and HTTP/1 servers and clients that record exactly the bytes they saw
    curl         curl, run inside the client's namespace
    manifests    the Kubernetes manifests of a pod, its service and its secrets
    node         `sidestep node` as a subprocess
    cli          `sidestep intercept` and the short commands as subprocesses
    kernel       what the kernel holds for a namespace: links, programs, maps, listeners, rules, processes
    scene        the usual composition: pod, nginx, node, handler
"""
