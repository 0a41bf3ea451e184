"""The mirror: what goes to others than client and app, bounded and lossy."""
