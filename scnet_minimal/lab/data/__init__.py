"""Images with labels: the drawn set, folders and downloads, batches on the device."""
from .batches import MEAN, STD, Batches, Data, denormalize, load_data, normalize

__all__ = ["MEAN", "STD", "Batches", "Data", "denormalize", "load_data", "normalize"]
