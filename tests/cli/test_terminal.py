from io import StringIO

from flashmoe.cli.terminal import LiveText, StatusLine


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_status_line_is_silent_without_a_terminal() -> None:
    stream = StringIO()
    line = StatusLine(stream)
    line.show("working")
    line.clear()
    assert stream.getvalue() == ""


def test_status_line_replaces_and_clears_itself_once() -> None:
    stream = Terminal()
    line = StatusLine(stream)
    line.show("one")
    line.show("two")
    line.clear()
    line.clear()
    assert stream.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K"


def test_live_text_is_plain_in_a_pipe_and_safe_on_a_terminal() -> None:
    pipe, terminal = StringIO(), Terminal()
    for stream in (pipe, terminal):
        LiveText(stream).write("a\x1b[2J\tb\n\x9bc")
    assert pipe.getvalue() == "a\x1b[2J\tb\n\x9bc"
    assert terminal.getvalue() == "a[2J\tb\nc"


def test_a_line_is_ended_only_if_begun() -> None:
    for text, expected in [("", ""), ("a", "a\n"), ("a\n", "a\n")]:
        stream = StringIO()
        live = LiveText(stream)
        live.write(text)
        live.end_line()
        assert stream.getvalue() == expected
