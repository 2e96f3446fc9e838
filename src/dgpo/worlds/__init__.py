"""Embedded worlds: a task, a renderer, a detector and a small pretrained pipeline, so that every claim can be checked."""
