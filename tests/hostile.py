"""Names, texts and files as an attacker would write them: every reader and every output is tried with all of them."""

import contextlib
import os
import socket

# Each leads out of the folder that holds it, or cannot be the name of a file. ABSOLUTE stands for a folder outside.
NAMES = {
    "parent": "../outside",
    "parent of a folder": "a/../../outside",
    "parent alone": "..",
    "parent at the end": "a/..",
    "parent in the middle": "./a/../outside",
    "absolute": "ABSOLUTE/outside",
    "absolute twice": "//outside",
    "root": "/",
    "home": "~/outside",
    "home of a user": "~root/outside",
    "drive": "C:/outside",
    "drive with backslashes": "C:\\outside",
    "backslashes": "..\\outside",
    "both slashes": "a/..\\..\\outside",
    "null": "a\0b",
    "folder itself": ".",
    "folder itself twice": "./.",
    "too long": "x" * 256,
    "too long in bytes": "\u00e9" * 200,
    "too long in all": "/".join(["x" * 200] * 8),
    "too deep": "a/" * 40 + "x",
    "division slash": "..\u2215outside",
    "fraction slash": "..\u2044outside",
    "wide slash": "..\uff0foutside",
    "big slash": "..\u29f8outside",
    "wide backslash": "..\uff3coutside",
    "small backslash": "..\ufe68outside",
    "two-dot leader": "\u2025/outside",
    "wide dots": "\uff0e\uff0e/outside",
    "absolute with a wide slash": "\uff0foutside",
}


@contextlib.contextmanager
def irregular_files(folder):
    """Paths of what is no regular file: reading some of it never ends."""
    folder.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / "pipe")
    (folder / "link to a pipe").symlink_to("pipe")
    (folder / "link to a device").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(folder, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/socket")  # the whole path may be too long for a socket
        os.close(here)
        yield sorted(folder.iterdir())


# Classes, files and tensors may be called so; every output shows them and obeys none.
TEXTS = (
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31mred",
    "overwritten\rname",
    "two\nlines",
    "two\r\nlines\x0b\x0c\x85\u2028\u2029end",
    "a\ttab",
    "\x00null\x08\x7f",
    "\u202egnp.exe",
    "\u2066a\u2069\u200f\u061c",
    "\ufeffmark",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://evil.example";"x")',
    "+1+1",
    "-1+1",
    "@SUM(1)",
    "\t=1+1",
    "\r=1+1",
    " =1+1",
    "\u00a0=1+1",
    "\u200b=1+1",
    "\uff1d1+1",
    "x;=1+1",
    'x"; @SUM(1)',
    "'=1+1",
    "'quoted",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; &amp;",
    "# heading",
    "x\n# heading",
    "x\n===",
    "[link](http://evil.example)",
    "![image](http://evil.example/a.png)",
    "<http://evil.example>",
    "http://evil.example",
    "www.evil.example",
    "me@evil.example",
    "---",
    "x\n---\nlicense: mit\n---\n",
    "- item",
    "1. item",
    "> quote",
    "`code`",
    "``` fence",
    "a | b | c",
    "*stars* _lines_ ~~gone~~ $x$",
    "[red]markup[/red]",
    ":warning:",
    "back\\slash \\x41 \\n",
    "yes",
    "null",
    "1e3",
    "a: b # c",
    "{a: b}",
    '"',
    "",
    " ",
    "雨",
    "🐕",
    "अमर",
    "می‌خواهم",  # with a joiner that belongs to the word
    os.fsdecode(b"no \xff UTF-8 \x9b31m"),
    "x" * 255,
)
