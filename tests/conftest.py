"""One thread: tensors here are small, and handing them to a second thread costs more than it saves."""

import torch

torch.set_num_threads(1)
