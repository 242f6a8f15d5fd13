"""Reads an SVG picture and writes it as PNG: a program of its own, `python rasterise.py SHARPNESS <picture.svg >picture.png`.

The letters are those of a font that comes with the service, so that a machine without fonts draws them all the same; where
the system has fonts, they lend what the own one lacks.
"""

import os
import sys

import fontpkg
import resvg_py

FAMILY = "Inter"


def main() -> None:
    """Draw on white paper. Pictures are no hurry: whatever else runs here goes first."""
    os.nice(10)
    picture = sys.stdin.buffer.read().decode()
    drawn = resvg_py.svg_to_bytes(
        svg_string=picture, background="#ffffff", zoom=float(sys.argv[1]), font_files=[str(fontpkg.path(FAMILY))],
        font_family=FAMILY, sans_serif_family=FAMILY,
    )  # fmt: skip
    sys.stdout.buffer.write(drawn)


if __name__ == "__main__":
    main()
