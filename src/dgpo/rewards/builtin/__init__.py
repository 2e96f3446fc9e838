"""The rewards of this package, one file for each kind. `rewards/registry.py` has their names.

Read `simple.py` (a reward is a function), `clip.py` (one with a network) and `geneval/` (one that reads metadata).
"""
