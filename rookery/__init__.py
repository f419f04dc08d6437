"""Rookery: the RWKV inference server. The code lives in `server/`, `kernels/` and `clients/`; this package links to them."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("rookery")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0"
