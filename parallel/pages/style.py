"""How the elements of a chart look: rules of a style sheet, for pages and for pictures that stand alone.

A selector is classes, and optionally a tag before them; later rules win. Colours are variables: `palette.py` has them.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from paralab.pages import palette

HERE = Path(__file__).parent

Properties = Mapping[str, str]

_DASHED_LIMIT = {"stroke": "var(--bad)", "stroke-width": "2", "stroke-dasharray": "7 3"}
_INK = {"stroke": "var(--ink)", "stroke-width": "2"}
RULES: tuple[tuple[str, Properties], ...] = (
    ("text", {"font-family": "system-ui, sans-serif", "font-size": "13px", "fill": "var(--ink)"}),
    ("text.tick", {"font-size": "12px", "fill": "var(--quiet)"}),
    ("text.value", {"font-variant-numeric": "tabular-nums"}),
    ("text.small", {"font-size": "11px", "stroke": "var(--panel)", "stroke-width": "3", "paint-order": "stroke"}),
    ("text.title", {"font-size": "14px", "font-weight": "600"}),
    ("text.in-span", {"font-size": "11px", "font-weight": "600", "fill": "var(--panel)", "stroke": "var(--c)",
                      "stroke-width": "4",
                      "paint-order": "stroke"}),
    (".cell", {"shape-rendering": "crispEdges"}),
    (".pixels", {"image-rendering": "pixelated"}),
    (".frame", {"fill": "none", "stroke": "var(--rule)", "stroke-width": "1"}),
    (".grid", {"stroke": "var(--rule)", "stroke-width": "1"}),
    (".zero", {"stroke": "var(--quiet)", "stroke-width": "1"}),
    (".band", {"fill": "var(--c)", "fill-opacity": "0.28"}),
    (".whisker", {"stroke": "var(--c)", "stroke-width": "1.5", "fill": "none"}),
    (".median", _INK),
    (".predicted", _INK),
    (".limit", _DASHED_LIMIT),
    (".front", {"fill": "none", "stroke": "var(--quiet)", "stroke-width": "1.5", "stroke-dasharray": "4 3"}),
    (".leader", {"stroke": "var(--quiet)", "stroke-width": "0.75", "fill": "none"}),
    (".fill", {"fill": "var(--c)"}),
    (".mark", {"fill": "var(--c)", "stroke": "var(--c)", "stroke-width": "1.5"}),
    (".mark.dashed", {"fill": "var(--panel)"}),
    (".mark.soft", {"fill-opacity": "0.6", "stroke-opacity": "0.6"}),
    (".mark.on-front", {"stroke": "var(--ink)", "stroke-width": "2"}),
    (".hatch", {"fill": "none", "stroke": "var(--panel)", "stroke-width": "1.3", "stroke-opacity": "0.8"}),
    (".idle", {"fill": "var(--panel)", "stroke": "var(--quiet)", "stroke-width": "1", "stroke-dasharray": "2 2"}),
    (".span", {"fill": "var(--c)", "stroke": "var(--panel)", "stroke-width": "0.75"}),
    (".line", {"fill": "none", "stroke": "var(--c)", "stroke-width": "2"}),
    (".line.dashed", {"stroke-dasharray": "6 3"}),
    (".line.gap", {"stroke-width": "1", "stroke-dasharray": "1 4"}),
    (".line.reference", {"stroke": "var(--quiet)", "stroke-opacity": "0.5", "stroke-width": "6"}),
    (".key", {"fill": "none", "stroke": "var(--c)", "stroke-width": "2"}),
    (".key.reference", {"stroke": "var(--quiet)", "stroke-opacity": "0.5", "stroke-width": "6"}),
    (".key.limit", _DASHED_LIMIT),
    (".key.predicted", _INK),
)  # fmt: skip
OWN_COLOUR = {"more": "var(--bad)", "less": "var(--good)"}  # classes that are no colour of the palette


def css() -> str:
    """Return the rules for a page whose style sheet has --paper, --ink and the like, with a light and a dark value."""
    rules = [f".chart {selector} {{ {_written(properties)} }}" for selector, properties in RULES]
    rules += [f".chart .{name} {{ --c: {value}; }}" for name, value in OWN_COLOUR.items()]
    return palette.variables() + "\n".join(rules) + "\n"


def on_paper() -> str:
    """Return the rules for a picture that stands alone on light paper: no variables, which not every reader knows."""
    colours = [*((f"c-{name}", colour.light) for name, colour in palette.COLOURS.items()),
               *((name, resolved(value, {})) for name, value in OWN_COLOUR.items())]  # fmt: skip
    rules = []
    for selector, properties in RULES:
        tinted = {key: value for key, value in properties.items() if value == "var(--c)"}
        plain = {key: value for key, value in properties.items() if value != "var(--c)"}
        rules += [f"{selector} {{ {_written(_on_light(plain, ''))} }}"] if plain else []
        rules += [f"{selector}.{name} {{ {_written(_on_light(tinted, value))} }}" for name, value in colours if tinted]
    return "\n".join(rules)


def _on_light(properties: Properties, own: str) -> dict[str, str]:
    return {key: resolved(value, {"--c": own}) for key, value in properties.items()}


def of(tag: str, classes: Iterable[str]) -> dict[str, str]:
    """Return the properties of an element on light paper, with all colours as #rrggbb."""
    names = set(classes)
    own = next((palette.COLOURS[name[2:]].light for name in names if name[2:] in palette.COLOURS), "#000000")
    own = next((resolved(value, {}) for name, value in OWN_COLOUR.items() if name in names), own)
    found: dict[str, str] = {}
    for selector, properties in RULES:
        first, *rest = selector.split(".")
        if first in ("", tag) and names.issuperset(rest):
            found |= _on_light(properties, own)
    return found


def resolved(value: str, more: Mapping[str, str]) -> str:
    """Return a value with its variables replaced by those of light paper, and by `more`."""
    known = {**palette.LIGHT, **more}
    return re.sub(r"var\((--[a-z]+)\)", lambda found: known[found[1]], value)


def _written(properties: Properties) -> str:
    return " ".join(f"{key}: {value};" for key, value in properties.items())
