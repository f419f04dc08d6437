"""These tests run kernels in Triton's interpreter, which a process has to choose before it imports triton.

`tests/test_triton_interpreter.py` starts one such process for each file; by hand it is
`TRITON_INTERPRET=1 ROOKERY_KERNELS=triton pytest tests/interpreted`.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
