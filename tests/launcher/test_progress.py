import io

from gputorrent.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_the_start_and_the_end_but_not_every_step():
    out = io.StringIO()
    progress = Progress("fetching", out)
    for n in range(100):
        progress.update(f"{n} MB")
    progress.done("100 MB")
    assert out.getvalue().splitlines() == ["fetching ...", "fetching: 100 MB (0 s)"]


def test_a_terminal_gets_one_line_that_changes():
    out = Terminal()
    progress = Progress("fetching", out)
    progress.update("1 MB of many")
    progress.update("2 MB")
    progress.note("by the way")
    progress.failed("no more")
    shown = out.getvalue()
    assert shown.count("\n") == 2
    assert "\rfetching: 2 MB, 0 s " in shown, "blanks wipe out the longer line before"
    assert shown.endswith("fetching: no more (after 0 s)\n")
