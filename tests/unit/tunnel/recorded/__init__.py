"""What an earlier version put on the wire, and how it read what came: recorded, and never changed."""
