"""From a name to a model that can be trained, and from a trained model to a folder.

Knows nothing of rows, losses or Lightning's loop (precision.py is the one Lightning plugin).
"""
