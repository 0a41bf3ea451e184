"""What the node daemon does in a Kubernetes cluster beside what it does everywhere."""
