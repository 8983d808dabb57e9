"""Names and files as an attacker would write them; every reader is tried with all of them."""

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
    "home": "~/outside",
    "home of a user": "~root/outside",
    "drive": "C:/outside",
    "drive with backslashes": "C:\\outside",
    "backslashes": "..\\outside",
    "both slashes": "a/..\\..\\outside",
    "null": "a\0b",
    "folder itself": ".",
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
LINKS = {"link to a file": "link", "link to a folder": "linked/outside"}  # in a folder that `plant_links` was given


def plant_links(folder, outside):
    """Links that lead out of a folder: to the file `outside`, and to its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "link").symlink_to(outside)
    (folder / "linked").symlink_to(outside.parent)


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
