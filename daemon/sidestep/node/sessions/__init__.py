"""Sessions and their resources: who requests which traffic, and the way to each handler."""
