from __future__ import annotations

import torch
from hypothesis import settings

# Small models train fastest on one thread, and two processes with two threads each on two cores wait for each other.
torch.set_num_threads(1)

# A first example may import scipy or wait for a busy machine; how long one takes is no property we test.
settings.register_profile("adamtune", deadline=None)
settings.load_profile("adamtune")
