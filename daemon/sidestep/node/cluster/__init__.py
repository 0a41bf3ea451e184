"""Parts of the node daemon that run only in a Kubernetes cluster."""
