"""ltune fine-tunes language models with PyTorch Lightning.

A row becomes tokens (data), tokens go through a model (models), an objective turns that into a loss (objectives),
Lightning does the rest (module). Imports point down only:

    cli -> apps -> train -> module | callbacks | checks -> objectives -> data | models | generation | optim | checkpoints -> errors
"""

__version__ = "0.1.0"
