"""A training loop for balanced losses, and the record that it keeps."""

from paddlescience_gradnorm.training.gradnorm_run import train_gradnorm
from paddlescience_gradnorm.training.history import History
from paddlescience_gradnorm.training.progress import ProgressBar
from paddlescience_gradnorm.training.trainer import Trainer

__all__ = ["History", "ProgressBar", "Trainer", "train_gradnorm"]
