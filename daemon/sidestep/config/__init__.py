"""Parsing of what people write: manifests, annotations, filters, durations."""
