"""Inspection of relayed exchanges by policies: what both engines share."""
