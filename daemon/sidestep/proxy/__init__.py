"""The pod proxy: zygote, sandbox, event loop, TLS legs."""
