"""Measuring and looking inside: costs and fields, gates, the game of notebook 01, timing, figures, other networks."""
