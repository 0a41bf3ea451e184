"""The processes of the pod side: zygote, sandbox, and the worker that joins everything."""
