"""What strace cut in two is put together again."""

from __future__ import annotations

from tracing import join


def test_a_call_that_another_thread_interrupted_is_one_line_where_it_ended() -> None:
    assert join([
        "12 fsync(5</a> <unfinished ...>\n",
        "13  link(\"x\", \"y\") = 0\n",
        "12 <... fsync resumed>) = 0\n",
        "13 read(0,  <unfinished ...>\n",
        "12 +++ exited with 0 +++\n",
    ]) == "13 link(\"x\", \"y\") = 0\n12 fsync(5</a>) = 0\n12 +++ exited with 0 +++\n13 read(0, \n"  # fmt: skip
