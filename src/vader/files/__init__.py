"""Everything that comes from a disk or goes to one: checkpoints, weights, videos, pictures.

In go paths, hub ids and the word `tiny`; out come tensors and settings, or one `UserError` that names file and part.
"""
