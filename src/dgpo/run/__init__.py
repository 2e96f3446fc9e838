"""What a run leaves and shows: its folder, checkpoints, metrics, what it prints, how it is stopped.

Read `folder.py` (what lies where), `checkpoint.py` (`save`, `load`) and `callbacks.py` (`Callback`, told of all).
"""
