"""A training loop for balanced losses, the record that it keeps, and its checkpoints."""

from paddlescience_gradnorm.training._checkpoint_file import CheckpointError
from paddlescience_gradnorm.training.checkpoints import Checkpoints
from paddlescience_gradnorm.training.comparison import Comparison, compare
from paddlescience_gradnorm.training.exchange import export_safetensors, import_safetensors
from paddlescience_gradnorm.training.gradnorm_run import train_gradnorm
from paddlescience_gradnorm.training.history import History
from paddlescience_gradnorm.training.live import LiveView
from paddlescience_gradnorm.training.metrics import load_metrics, save_metrics
from paddlescience_gradnorm.training.progress import ProgressBar
from paddlescience_gradnorm.training.report import write_report
from paddlescience_gradnorm.training.run_state import RunState
from paddlescience_gradnorm.training.signals import StopOnSignals
from paddlescience_gradnorm.training.tensorboard import TensorBoard
from paddlescience_gradnorm.training.trainer import Trainer
from paddlescience_gradnorm.training.visualdl import VisualDL
from paddlescience_gradnorm.training.watchdog import Watchdog

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Comparison",
    "History",
    "LiveView",
    "ProgressBar",
    "RunState",
    "StopOnSignals",
    "TensorBoard",
    "Trainer",
    "VisualDL",
    "Watchdog",
    "compare",
    "export_safetensors",
    "import_safetensors",
    "load_metrics",
    "save_metrics",
    "train_gradnorm",
    "write_report",
]
