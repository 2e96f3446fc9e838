"""GenEval's words and prompts (Ghosh et al. 2023), for training and testing real text-to-image models."""
