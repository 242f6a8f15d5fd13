"""Reads an SVG picture and writes it as PNG: a program of its own, `python rasterise.py SHARPNESS <picture.svg >picture.png`.

The letters are those of a font that comes with the service, so that a machine without fonts draws them all the same; where
the system has fonts, they lend what the own one lacks.
"""

import os
import resource
import sys

import fontpkg
import resvg_py

FAMILY = "Inter"
MOST_MEMORY = 1_500_000_000  # bytes of address space
MOST_SECONDS = 60  # of CPU


def main() -> None:
    """Draw on white paper. Pictures are no hurry: whatever else runs here goes first."""
    os.nice(10)
    _limit(resource.RLIMIT_AS, MOST_MEMORY)
    _limit(resource.RLIMIT_CPU, MOST_SECONDS)
    picture = sys.stdin.buffer.read().decode()
    drawn = resvg_py.svg_to_bytes(
        svg_string=picture, background="#ffffff", zoom=float(sys.argv[1]), font_files=[str(fontpkg.path(FAMILY))],
        font_family=FAMILY, sans_serif_family=FAMILY,
    )  # fmt: skip
    sys.stdout.buffer.write(drawn)


def _limit(kind: int, most: int) -> None:
    """Bounds what the program may use; a stricter bound that it was started under stays."""
    _, hard = resource.getrlimit(kind)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (bound, bound))


if __name__ == "__main__":
    main()
