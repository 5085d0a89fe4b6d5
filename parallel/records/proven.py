"""On how much of a run parity was proved, and how that is said."""

from collections.abc import Sequence

from paralab.records.row import RunRecord

WHOLE, NOT_PROVEN = "whole", "not proven: the reference does not fit"  # scopes of parity; else so much of so much
NOT_CLAIMED = "not claimed"  # of a run that computes something else than one process, on purpose


def parity_words(records: Sequence[RunRecord]) -> str:
    """Say what is known of the parity of runs of one kind, and on how much of them where that is not all.

    One that failed speaks for all; else the one that was proved on most. What was proved on all says `passed`.
    """
    checked = [record for record in records if record.parity is not None]
    if not checked:
        return next((record.parity_result for record in records if record.parity_result), "not checked")
    passed = all(record.parity for record in checked)
    scopes = [record.parity_scope or WHOLE for record in checked if record.parity is passed]
    scope = WHOLE if WHOLE in scopes else scopes[0]
    return ("passed" if passed else "FAILED") + ("" if scope == WHOLE else f" on {scope}")
