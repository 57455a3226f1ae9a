"""The last weights that were pushed, kept as files for servers that must be given them again."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from rlhf.rollouts.serving.weight_files import write_weight_files

PREFIX = "rlhf-weights-"
LOCK = "in-use"


class KeptWeights:
    """A folder of its own in `parent`, with one copy of the weights in `dtype`, in files of at most `bucket_bytes`.

    What killed trainers left in `parent` is removed. Raises OSError where `parent` cannot be written.
    """

    def __init__(self, parent: str, dtype: torch.dtype, bucket_bytes: int) -> None:
        remove_leftovers(Path(parent))
        self.dtype, self.bucket_bytes = dtype, bucket_bytes
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self.names: list[str] = []
        self._lock = (self.folder / LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def replace(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Keep these (name, tensor) pairs instead. The old ones go first: there need be room for one copy only, and a
        server that still maps a file keeps what it maps."""
        for name in self.names:
            (self.folder / name).unlink(missing_ok=True)
        self.names = []
        self.names = write_weight_files(weights, self.folder, self.dtype, self.bucket_bytes)

    def close(self) -> None:
        """Remove the files; idempotent."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def remove_leftovers(parent: Path) -> None:
    """Remove folders whose trainer has ended: the kernel has dropped its lock, whatever ended it."""
    for lock_file in parent.glob(f"{PREFIX}*/{LOCK}"):
        try:
            with lock_file.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # in use, or another user's
        shutil.rmtree(lock_file.parent, ignore_errors=True)
