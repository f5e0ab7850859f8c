"""Boxes, masks, keypoints and class maps: their data, their models, their metrics."""
