"""The arithmetic of the method: pure functions on tensors, without files, models or processes.

Read `flow.py` (noised images and velocities), `solvers.py` (sampling) and `losses.py` with `advantages.py`.
"""
