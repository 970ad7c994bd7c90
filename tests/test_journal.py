from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend

from adamtune.errors import UnwritableError
from adamtune.search import journal
from adamtune.search.journal import BufferedJournal


def numbers(lines: Any) -> list[int]:
    return [line["n"] for line in lines]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 4)),
            st.tuples(st.just("read"), st.integers(0, 12)),
            st.tuples(st.just("flush"), st.just(0)),
            st.tuples(st.just("reopen"), st.just(0)),
        ),
        max_size=30,
    )
)
def test_lines_are_read_back_in_order_wherever_they_are(moves: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "j")
        ours, all_lines = BufferedJournal(path), 0
        for move, amount in moves:
            if move == "append":
                ours.append_logs([{"n": all_lines + place} for place in range(amount)])
                all_lines += amount
            elif move == "read":
                start = min(amount, all_lines)
                assert numbers(ours.read_logs(start)) == list(range(start, all_lines))
            else:
                ours.flush()
                assert numbers(JournalFileBackend(path).read_logs(0)) == list(range(all_lines))
                if move == "reopen":
                    ours = BufferedJournal(path)
        assert numbers(ours.read_logs(0)) == list(range(all_lines))


def test_lines_that_cannot_be_written_wait_for_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = BufferedJournal(str(tmp_path / "j"))
    ours.append_logs([{"n": 0}])
    with monkeypatch.context() as full:
        full.setattr(JournalFileBackend, "append_logs", _disk_full)
        with pytest.raises(UnwritableError, match="full"):
            ours.flush()
    ours.append_logs([{"n": 1}])
    ours.flush()
    assert numbers(JournalFileBackend(str(tmp_path / "j")).read_logs(0)) == [0, 1]


def test_lines_wait_until_nothing_is_half_told(tmp_path: Path) -> None:
    ours, written = BufferedJournal(str(tmp_path / "j")), JournalFileBackend(str(tmp_path / "j"))
    ours.append_logs([{"n": place} for place in range(journal.LINES + 1)])
    assert numbers(written.read_logs(0)) == []
    ours.settle()
    assert len(numbers(written.read_logs(0))) == journal.LINES + 1


def _disk_full(self: object, logs: object) -> None:
    raise OSError("full")
