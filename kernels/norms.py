"""What the norms of RWKV add to a variance before its root."""

LAYER_NORM_EPS = 1e-5
HEAD_NORM_EPS = 64e-5
"""Of the norm after WKV in RWKV-5, 6 and 7, whatever the head size: training divides by 8 and uses 1e-5."""
