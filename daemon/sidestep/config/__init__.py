"""Parsers for what people write: manifests, annotations, filters, locations, durations and node settings. No I/O."""
