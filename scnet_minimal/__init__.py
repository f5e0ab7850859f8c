"""SCNet, minimal: self-calibrated convolutions in one file (scnet.py), and a course around it (lab/, notebooks/)."""
from .fuse import fuse
from .scnet import SCBottleneck, SCConv, SCNet, SelfCalibration, scnet50, scnet50_v1d, scnet101, scnet101_v1d

__all__ = ["SelfCalibration", "SCConv", "SCBottleneck", "SCNet", "scnet50", "scnet101", "scnet50_v1d", "scnet101_v1d",
           "fuse"]
