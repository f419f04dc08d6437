"""The operators as Triton kernels, one file beside each file of torch references that shares its name.

Imported only where `backend.uses_triton` says so. What is known of every kernel here: it equals its reference in
Triton's interpreter, in float32 and float16, and it compiles for an H200 without spilling registers to speak of. None
has run on a GPU yet, so block sizes and warp counts are reasoned, not measured; `pytest -m gpu` and
`rookery bench kernels` are what to run first on one.
"""

import os

# multiply and add in one instruction, whatever this version of Triton does where nothing is said
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
