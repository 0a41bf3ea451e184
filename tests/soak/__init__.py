"""Hours of ordinary use in minutes: mixed traffic while everything of ours is killed in turn. See `soak`."""
