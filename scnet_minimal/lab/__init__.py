"""What the notebooks and commands stand on.  Nobody needs it to use SCNet."""
from .study.replace import sc_replace

__all__ = ["sc_replace"]
