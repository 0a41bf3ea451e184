"""Kubernetes API: access, requests, watches, port-forwards, and locating pods on a node. Only this package knows the
API.
"""
