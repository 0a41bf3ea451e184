"""The node daemon, the privileged side: sees to the pods of one node and serves the sessions of developers."""
