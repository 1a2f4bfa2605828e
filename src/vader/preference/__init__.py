"""Human preference: a blind study of pairs of videos, its pages, its server, and what its answers say.

In go runs and folders of videos, out comes a folder: `study.json`, the private key that alone names systems; the blind
`videos/`; `study.html`, on which people answer. Their answers go in, win shares with intervals come out.
"""
