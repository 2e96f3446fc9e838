"""Rewards over HTTP, called from a run and served to others: the words on the wire, a client, a pool, a server.

Read `wire.py` (the protocol), `client.py` (`Remote`, the reward that asks a server) and `serve.py` (`serve`).
"""
