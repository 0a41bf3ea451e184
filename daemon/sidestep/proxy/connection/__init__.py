"""One client connection: accepted, classified, established, relayed."""
