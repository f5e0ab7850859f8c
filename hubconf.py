"""For torch.hub: torch.hub.load("OWNER/REPO", "scnet50", pretrained=True), or a folder with source="local"."""
from scnet_minimal.scnet import scnet50, scnet50_v1d, scnet101, scnet101_v1d  # noqa: F401

dependencies = ["torch"]
