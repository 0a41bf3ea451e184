"""Kubernetes: access, requests, watches, port-forwards, and where pods live on a node. Nobody else knows its API."""
