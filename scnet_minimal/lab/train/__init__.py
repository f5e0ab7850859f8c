"""Training: the loop and the classifier's task, checkpoints, several processes, and what the commands share."""
