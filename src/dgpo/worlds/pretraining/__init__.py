"""The training of the embedded pipelines, by which anybody can make them again: autoencoder, then flow transformer.

Read `stages.py` (the order of things) and `pipeline.py` (the networks).
"""
