#!/usr/bin/env python3
"""Draws what a terminal shows as an SVG: text in, with colours or without, picture out.

    bywash demo --for 12s | scripts/terminal-picture.py --command 'bywash demo --for 12s' >docs/images/demo.svg

Knows what programs of this tree write: newline, carriage return, erase line, colours and bold.
"""

import argparse
import re
import sys
from xml.sax.saxutils import escape

COLUMN, LINE, MARGIN, BAR = 8.4, 19, 16, 30
COLOURS = ["#484f58", "#ff7b72", "#7ee787", "#e3b341", "#79c0ff", "#d2a8ff", "#76e3ea", "#e6edf3"]
PLAIN, DIM, GROUND = "#e6edf3", "#8b949e", "#0d1117"


def screen(text):
    """The lines as they stand at the end: lists of (character, style), style being (colour, bold)."""
    lines, row, column, style = [[]], 0, 0, (PLAIN, False)
    for token in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|[\s\S]", text):
        if token == "\n":
            lines.append([])
            row, column = row + 1, 0
        elif token == "\r":
            column = 0
        elif token.startswith("\x1b["):
            codes = [int(code or 0) for code in token[2:-1].split(";")]
            if token[-1] == "K":
                del lines[row][0 if codes[0] == 2 else column:]
            elif token[-1] == "m":
                for code in codes:
                    style = styled(style, code)
        else:
            line = lines[row]
            line.extend([(" ", style)] * (column + 1 - len(line)))
            line[column] = (token, style)
            column += 1
    while lines and not lines[-1]:
        lines.pop()
    return lines


def styled(style, code):
    colour, bold = style
    if code == 0:
        return (PLAIN, False)
    if code == 1:
        return (colour, True)
    if code == 2:
        return (DIM, bold)
    if 30 <= code <= 37 or 90 <= code <= 97:
        return (COLOURS[code % 10], bold)
    return (PLAIN, bold) if code == 39 else style


def wrap(lines, columns):
    """Long lines go on in the next row, as a terminal has them."""
    for line in lines:
        for start in range(0, max(len(line), 1), columns):
            yield line[start:start + columns]


def spans(line):
    """Neighbours of one style as one text."""
    at = 0
    while at < len(line):
        end = at
        while end < len(line) and line[end][1] == line[at][1]:
            end += 1
        yield at, "".join(character for character, _ in line[at:end]), line[at][1]
        at = end


def draw(lines, columns, title):
    width = round(columns * COLUMN + 2 * MARGIN)
    height = BAR + len(lines) * LINE + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{GROUND}"/>',
        *(f'<circle cx="{MARGIN + 6 + 18 * n}" cy="15" r="5" fill="{COLOURS[c]}"/>' for n, c in enumerate((1, 3, 2))),
        f'<g font-family="ui-monospace,Menlo,Consolas,\'DejaVu Sans Mono\',monospace" font-size="14" fill="{PLAIN}">',
    ]
    for row, line in enumerate(lines):
        y = BAR + (row + 1) * LINE - 5
        for at, text, (colour, bold) in spans(line):
            if text.strip():
                weight = ' font-weight="bold"' if bold else ""
                fill = f' fill="{colour}"' if colour != PLAIN else ""
                size = f'textLength="{len(text) * COLUMN:.1f}" lengthAdjust="spacingAndGlyphs"'
                x = MARGIN + at * COLUMN
                out.append(f'<text x="{x:.1f}" y="{y}" {size} xml:space="preserve"{weight}{fill}>{escape(text)}</text>')
    return "\n".join([*out, "</g>", "</svg>", ""])


def main():
    arguments = argparse.ArgumentParser(description="Draws what a terminal shows as an SVG.")
    arguments.add_argument("--command", help="shown as the first line, after a prompt")
    arguments.add_argument("--columns", type=int, default=110, help="where lines wrap (default: 110)")
    given = arguments.parse_args()
    lines = screen(sys.stdin.read())
    if given.command:
        prompt = [("$", (COLOURS[2], True)), (" ", (PLAIN, False))]
        lines.insert(0, prompt + [(character, (PLAIN, True)) for character in given.command])
    sys.stdout.write(draw(list(wrap(lines, given.columns)), given.columns, given.command or "a terminal"))


main()
