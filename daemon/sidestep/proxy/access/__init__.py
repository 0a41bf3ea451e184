"""Connections that the pod proxy makes for sessions with access to the pod."""
