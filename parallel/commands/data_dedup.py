"""Write texts again without what repeats: exact duplicates, and near ones by MinHash.

    paralab data dedup rows.jsonl --out unique.jsonl --workers 4
    paralab data dedup alice --measure

The first of those that repeat each other is kept. Two texts are near duplicates where their Jaccard similarity (the
share of shingles that they have in common) reaches --threshold by the estimate of their MinHashes. A command that was
interrupted goes on where it was when it is started again.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.commands.data_texts import add_by, megabytes, parser_of, texts_of
from paralab.console.clock import Moment
from paralab.console.outputs import check_outputs
from paralab.console.phases import Phases
from paralab.errors import UsageError
from paralab.options.arguments import share, whole

if TYPE_CHECKING:
    from paralab.curation.signatures import Near
    from paralab.curation.units import Texts

MOST_PERMUTATIONS = 4096  # of 4 bytes each, for every unit of the texts
_PLANTED = 300  # units that --measure copies, at most


def main(argv: list[str]) -> int:
    """Write what is kept, or print how well near duplicates are found. Returns: 0.

    Raises: UsageError for options that do not fit the texts, DataError for a text that cannot be read or is empty.
    """
    options = _parse(argv)
    from paralab.curation.signatures import EXACT, Near

    near = EXACT if options.exact else Near(options.shingle, options.characters, options.permutations)
    near.check()
    texts = texts_of(options)
    if options.measure:
        return _measure(texts, near, options.threshold)
    _check_out(options.out, options.pairs, texts)
    return _write(texts, near, options)


def _write(texts: "Texts", near: "Near", options: argparse.Namespace) -> int:
    from paralab.curation.kept import signatures_of
    from paralab.curation.without import dropped, write, write_pairs

    with Phases(Moment.now(), transient=True) as phases:
        found = signatures_of(texts, near, workers=options.workers, phases=phases)
        phases.begin("comparing")
        again = dropped(found, near, threshold=options.threshold)
        kept_bytes = write(Path(options.out), texts, found, again, phases=phases)
    if options.pairs is not None:
        write_pairs(Path(options.pairs), texts, found, again)
    exact = sum(duplicate.similarity is None for duplicate in again)
    print(f"{texts.noun:<10}  {len(found):,}, {megabytes(int(found['n_bytes'].sum()))}")
    print(f"{'exact':<10}  {exact:,} repeat an earlier one to the letter")
    if near.permutations:
        print(f"{'near':<10}  {len(again) - exact:,} are like an earlier one (Jaccard {options.threshold:g} or more)")
    print(f"{'kept':<10}  {len(found) - len(again):,}, {megabytes(kept_bytes)}, in {options.out}")
    return 0


def _measure(texts: "Texts", near: "Near", threshold: float) -> int:
    from paralab.curation.planted import plant

    copies = plant(texts.units(), near, threshold=threshold, most=_PLANTED)
    if not copies:
        raise UsageError(
            f"no {texts.by} has twenty words or more, to plant copies of: give a longer text, or another --by"
        )
    print(f"{len(copies)} {texts.noun} copied with some words replaced, found at {threshold:g} or more\n")
    print("exact Jaccard   copies    found")
    for low in (0.0, *(x / 20 for x in range(10, 20))):
        high = 0.5 if not low else low + 0.05
        some = [copy for copy in copies if low <= copy.jaccard < high or (copy.jaccard == 1 and low == 0.95)]
        if some:
            print(f"{low:.2f} to {high:.2f} {len(some):>9} {sum(copy.found for copy in some):>8}")
    true, found = (sum(x) for x in zip(*((c.jaccard >= threshold, c.found) for c in copies), strict=True))
    both = sum(copy.found and copy.jaccard >= threshold for copy in copies)
    print(f"\nprecision {_ratio(both, found)}: of what is found, so much is at {threshold:g} or more")
    print(f"recall    {_ratio(both, true)}: of what is at {threshold:g} or more, so much is found")
    return 0


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.3f} ({part} of {whole})" if whole else "unknown (0 of 0)"


def _check_out(out: str | None, pairs: str | None, texts: "Texts") -> None:
    """Refuse files that do not fit the texts, before the work. Raises: UsageError."""
    if out is None:
        raise UsageError("--out is needed: the file to write what is kept to, or --measure to write nothing")
    endings = (".txt", ".jsonl") if texts.plain and texts.by != "document" else (".jsonl",)
    if Path(out).suffix not in endings:
        raise UsageError(
            f"--out {out}: {texts.noun} of these texts are written to a file ending in {' or '.join(endings)}"
        )
    check_outputs({"--out": out, "--pairs": pairs}, inputs=texts.files)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of("paralab data dedup", __doc__)
    add_by(parser)
    parser.add_argument(
        "--out", metavar="FILE", help="File to write the texts that are kept to: .txt for plain texts, or .jsonl"
    )
    parser.add_argument(
        "--pairs", metavar="FILE", help="CSV file that lists each text that was dropped, and the one that it repeats"
    )
    parser.add_argument("--exact", action="store_true", help="Drop exact duplicates alone")
    parser.add_argument(
        "--threshold", type=share, default=0.8, metavar="X", help="Jaccard similarity of near duplicates (default: 0.8)"
    )
    parser.add_argument(
        "--shingle", type=whole(1), default=5, metavar="N", help="Number of consecutive words in a shingle (default: 5)"
    )
    parser.add_argument(
        "--characters",
        action="store_true",
        help="Shingles of characters instead of words, for languages without blanks between words",
    )
    parser.add_argument(
        "--permutations",
        type=whole(16, MOST_PERMUTATIONS),
        default=128,
        metavar="N",
        help="Number of hashes in a MinHash: more of them estimate better, and take more time and disk (default: 128)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="Print precision and recall on changed copies of these texts, compared by exact Jaccard; write nothing",
    )
    options = parser.parse_args(argv)
    if options.exact and options.measure:
        raise UsageError("--measure is about near duplicates: leave --exact out")
    for flag in ("out", "pairs"):
        if options.measure and getattr(options, flag) is not None:
            raise UsageError(f"--measure writes nothing: leave --{flag} out, or --measure")
    return options
