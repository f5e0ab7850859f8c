"""Training: the loop and the classifier's task, checkpoints, several processes, and what the commands share."""
from .classify import compile_for, evaluate, fit, predict, top1
from .loop import Task, Trainer

__all__ = ["Task", "Trainer", "compile_for", "evaluate", "fit", "predict", "top1"]
