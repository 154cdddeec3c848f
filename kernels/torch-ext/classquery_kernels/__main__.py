"""Print which implementations are available: `python -m classquery.kernels`."""

from . import implementations


for name, description in implementations().items():
    print(f"{name:8} {description}")
