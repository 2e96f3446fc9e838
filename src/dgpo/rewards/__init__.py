"""Scores of images: a reward is a function `(images, prompts, metadata) -> (B,)`, and a failure is never a score.

Read `base.py` (the contract), `combine.py` (`RewardSet`, the weighted sum) and `registry.py` (`resolve`, from a name).
"""
