"""What the notebooks stand on; nobody needs it to use SCNet."""
from .replace import sc_replace

__all__ = ["sc_replace"]
