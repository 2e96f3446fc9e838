"""Embedded worlds: a task, a renderer, a detector and a small pretrained pipeline. Every claim can be checked on them."""
