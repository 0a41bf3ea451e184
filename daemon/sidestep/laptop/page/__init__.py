"""The live page of `sidestep ui`: requests of sessions in a browser on this machine.

`flow_ring.py` keeps them, `guard.py` decides who may ask, `server.py` answers, `assets/` is what the browser runs.
"""
