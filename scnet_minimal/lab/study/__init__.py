"""Measuring and looking inside: costs and fields, Grad-CAM and gates, the two-dots game, figures, the block elsewhere."""
