"""Data sets that are drawn on the spot: movies with keyframes, and videos with tubes."""

from classquery.data.demo.movies import write_demo_movie


__all__ = ["write_demo_movie"]
