"""State that the node daemon plans and pod proxies carry out: values that travel in control messages."""
