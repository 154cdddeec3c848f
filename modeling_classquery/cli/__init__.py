"""The command `classquery`: everything that the package does, by name.

    classquery detect video.mp4
    classquery train --recipe demo --output_dir out

What a command takes is imported when it is known: lists and help texts are there at once.
"""

from classquery.cli.commands import main, run_script


__all__ = ["main", "run_script"]
