from __future__ import annotations

import torch

# Small models train fastest on one thread, and two processes with two threads each on two cores wait for each other.
torch.set_num_threads(1)
