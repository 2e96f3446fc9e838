"""What a run reads: prompts, the order in which they are drawn, datasets of scored groups, folders of pictures.

Read `prompts.py` (`load_prompts`, `PromptSet`), `sampler.py` (`PromptSampler`) and `groups.py` (`GroupDataset`).
"""
