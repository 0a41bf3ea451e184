"""The Kubernetes API adapter."""
