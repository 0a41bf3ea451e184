"""Sessions and resources: who wants which requests, and the way to the handler of each."""
