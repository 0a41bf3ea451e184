"""Connections that the pod makes: accepted where the kernel has steered them, judged, and relayed to their servers."""
