"""Training: the loop and the classifier's task, checkpoints, several processes, and what the commands share."""
from .classify import evaluate, fit, predict, top1
from .loop import Task, Trainer

__all__ = ["Task", "Trainer", "evaluate", "fit", "predict", "top1"]
