"""The table of lines of code in docs/library.md is what its scripts count."""

from pathlib import Path

import pytest

from paralab.benchmarks import lines

PAGE = Path(__file__).resolve().parents[3] / "docs" / "library.md"


def test_the_table_of_the_page_is_what_the_scripts_count() -> None:
    assert f"\n\n{lines.table()}\n\n" in PAGE.read_text()


def test_a_line_of_code_is_counted_once() -> None:
    text = '"""Title,\n\nand more."""\n\nimport torch\n\n# a comment\n\n'
    text += 'def f(x):\n    """Say."""\n    return [\n        x,\n    ]\n'
    assert lines.count(text) == 5
    assert lines.count(f"if x:  {lines.ON_CPUS}\n    y = 1  {lines.ON_CPUS}\nz = 2\n") == 1


@pytest.mark.parametrize("path", sorted(lines.SCRIPTS.glob("*_*.py")), ids=lambda path: path.stem)
def test_a_script_is_in_the_table_and_trains_the_model_of_all(path: Path) -> None:
    library, _, layout = path.stem.partition("_")
    assert library in lines.LIBRARIES and layout in lines.LAYOUTS
    text = path.read_text()
    assert "from net import" in text and 'f"loss {' in text
    assert "clip_norm=1.0" in text or "1.0" in next(line for line in text.splitlines() if "clip" in line)
