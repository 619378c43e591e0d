"""One thread: tensors here are small, and handing them to a second thread costs more than it saves.

Commands that tests start inherit that, and leave the other cores to other tests.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
