"""The loop and what it is made of. Read `loop.py` (the run), `update.py` (an optimizer step) and `draw.py` (an image).

`setup.py` prepares a run and refuses what cannot work; `sources.py` gives rollouts, sampled or replayed; `schedule.py`
holds the rules that the loop acts by and `dgpo plan` foretells by; `apply.py` uses a trained model.
"""
