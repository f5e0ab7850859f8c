"""Measuring and looking inside: costs and fields, gates, the two-dots game, timing, figures, the block elsewhere."""
