"""A log that grows is read once: whole lines, and from its beginning where it was made anew."""

import os
from pathlib import Path

from paralab.records.tail import Tail


def test_only_finished_lines_are_taken_and_each_of_them_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tail = Tail(path)
    tail.follow()
    assert tail.records == [] and tail.written_s is None  # it is not there yet
    path.write_bytes(b'{"step": 0}\n{"step": 1}\n{"st')
    tail.follow()
    assert [record["step"] for record in tail.records] == [0, 1]
    with open(path, "ab") as file:
        file.write(b'ep": 2}\n[3]\nno json\n')
    tail.follow()
    tail.follow()
    assert [record["step"] for record in tail.records] == [0, 1, 2]


def test_a_log_that_was_cut_or_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1}\n')
    tail = Tail(path)
    tail.follow()
    os.truncate(path, len(b'{"step": 0}\n'))
    tail.follow()
    assert [record["step"] for record in tail.records] == [0]
    new = tmp_path / "new.jsonl"
    new.write_bytes(b'{"step": 7}\n{"step": 8}\n{"step": 9}\n')
    new.replace(path)
    tail.follow()
    assert [record["step"] for record in tail.records] == [7, 8, 9]
