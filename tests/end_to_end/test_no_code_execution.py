"""No input is executed: no call in the source could do it, and pickles in caches and weights do not run.

The one exception: `--config` names a Python file, which the configuration loader runs. No other input (audio, list,
cache, checkpoint, stored configuration) is executed.
"""

import ast
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from datar_jax.checkpoints.model_info import ModelError
from datar_jax.checkpoints.torch_file import read_arrays
from datar_jax.config import DataConfig
from datar_jax.data.readers import read_dataset
from datar_jax.data.sources.feature_cache import open_cache
from tests.data.test_readers import AUDIO, folder_of

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "datar_jax").rglob("*.py"), ROOT / "train.py"])
MEANT = {
    ("datar_jax/config/loader.py", "spec.loader.exec_module"),  # the config file that the user names
    ("datar_jax/training/peers.py", "ctypes"),  # a handler of SIGABRT, which Python's signals cannot be
}

BUILTINS = {"eval", "exec", "compile", "__import__"}
MODULES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"),
    *("builtins", "code", "codeop", "ctypes", "pty", "runpy", "torch"),
}
CALLS = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("importlib.import_module", "pandas.read_pickle", "asyncio.create_subprocess_shell"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"),
}
BEGINNINGS = ("os.exec", "os.spawn", "os.posix_spawn")
NUMPY = {"numpy.load", "numpy.lib.format.read_array", "numpy.lib.npyio.NpzFile"}  # only with allow_pickle=False


def findings(source):
    """What in a source text could run what it reads: dotted names, aliases resolved, with the line."""
    tree = ast.parse(source)
    aliases, found = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                first = name.name.partition(".")[0]
                aliases[name.asname or first] = name.name if name.asname else first
                imported(name.name, node, found)
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported(node.module, node, found)
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
                imported(f"{node.module}.{name.name}", node, found)
    safe = {id(call.func) for call in ast.walk(tree) if isinstance(call, ast.Call) and harmless(call, aliases)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and any(
            word.arg == "shell" and not (isinstance(word.value, ast.Constant) and word.value.value is False)
            for word in node.keywords
        ):
            found.append(("shell=", node.lineno))
        if not isinstance(node, ast.Name | ast.Attribute) or id(node) in safe:
            continue
        name = dotted(node, aliases)
        if name in CALLS | NUMPY or name.startswith(BEGINNINGS) or name.endswith((".exec_module", ".load_module")):
            found.append((name, node.lineno))
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            found.append((node.id, node.lineno))
    return found


def imported(name, node, found):
    if name.partition(".")[0] in MODULES:
        found.append((name, node.lineno))


def dotted(node, aliases):
    """`np.load` as `numpy.load`; what hangs on a call or an index begins with a dot."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, aliases)}.{node.attr}"
    return aliases.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def harmless(call, aliases):
    """Whether a call of numpy's readers, or of yaml with a safe loader, says in so many words that it runs nothing."""
    name = dotted(call.func, aliases)
    given = {word.arg: word.value for word in call.keywords}
    if name in NUMPY:
        value = given.get("allow_pickle")
        return isinstance(value, ast.Constant) and value.value is False
    loader = given.get("Loader")
    return name in ("yaml.load", "yaml.load_all") and loader is not None and "Safe" in dotted(loader, aliases)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_can_run_what_it_reads(path):
    assert {
        (path.relative_to(ROOT).as_posix(), name) for name, _ in findings(path.read_text(encoding="utf-8"))
    } <= MEANT


def test_the_exception_is_the_config_file_alone():
    found = [
        (path.relative_to(ROOT).as_posix(), name)
        for path in SOURCES
        for name, _ in findings(path.read_text(encoding="utf-8"))
    ]
    assert len(SOURCES) > 25 and found == sorted(MEANT)


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(text)",
        "list(map(eval, texts))",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "import builtins; getattr(builtins, 'ev' + 'al')(text)",
        "import pickle",
        "import pickle as p; p.loads(data)",
        "from pickle import loads",
        "import cloudpickle",
        "import dill",
        "import joblib",
        "import marshal",
        "import shelve",
        "import ctypes",
        "import torch; torch.load(path)",
        "import runpy",
        "import numpy as np; np.load(path)",
        "import numpy as np; np.load(path, allow_pickle=True)",
        "import numpy as np; np.load(path, allow_pickle=flag)",
        "import numpy as np; read = np.load",
        "from numpy import load; load(path)",
        "import numpy.lib.format as f; f.read_array(file)",
        "import yaml; yaml.load(text)",
        "import yaml; yaml.load(text, Loader=yaml.Loader)",
        "from yaml import unsafe_load; unsafe_load(text)",
        "import subprocess; subprocess.run(command, shell=True)",
        "from subprocess import Popen; Popen(command, shell=flag)",
        "import subprocess; subprocess.getoutput(command)",
        "import os; os.system(command)",
        "from os import system; system(command)",
        "import os; os.popen(command)",
        "import os; os.execv(path, words)",
        "import importlib; importlib.import_module(name)",
        "loader.exec_module(module)",
        "find(name).loader.exec_module(module)",
        "def inside():\n    import pickle",
    ],
)
def test_the_search_finds_each_kind(source):
    assert findings(source)


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np; np.load(path, allow_pickle=False)",
        "import re; re.compile(text)",
        "step.lower(x).compile()",
        "import yaml; yaml.safe_load(text)",
        "import yaml; yaml.load(text, Loader=yaml.SafeLoader)",
        "import subprocess; subprocess.run(['ls'], shell=False)",
        "import json; json.load(file)",
        "model.eval()",
    ],
)
def test_the_search_leaves_the_harmless_alone(source):
    assert not findings(source)


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("suffix", "filled", "reason"),
    [
        (".frames", False, r"\.frames has \d+ bytes, not \d+"),
        (".frames", True, r"\.frames holds other numbers for a/a0\.wav than were written"),
        (".json", False, r"\.json is no index"),
    ],
)
def test_a_pickle_in_place_of_a_cache_file_is_refused_and_does_not_run(tmp_path, suffix, filled, reason):
    sounds = read_dataset(DataConfig(root=str(folder_of(tmp_path / "sounds", ("a", "b"), 2))))
    before = open_cache(sounds, AUDIO, tmp_path / "cache")
    whole = [before.get(i).copy() for i in range(4)]
    path = next((tmp_path / "cache").glob(f"*{suffix}"))
    size = path.stat().st_size
    ran = tmp_path / "ran"
    with path.open("wb") as file:
        np.save(file, np.array([Payload(ran)], object), allow_pickle=True)
        file.write(bytes(size - file.tell() if filled else 0))

    told = []
    features = open_cache(sounds, AUDIO, tmp_path / "cache", None, told.append)
    assert not ran.exists()
    (line,) = told
    assert line.startswith(f"{tmp_path / 'cache'}: the feature cache is damaged (") and "\n" not in line
    assert re.search(reason, line)
    for i, mel_TxF in enumerate(whole):
        np.testing.assert_array_equal(features.get(i), mel_TxF)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_object_in_torch_weights_does_not_run(tmp_path, protocol):
    ran = tmp_path / "ran"
    pickled = pickle.dumps({"model": {"weight": Payload(ran)}, "args": Payload(ran)}, protocol)
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    with pytest.raises(ModelError, match="no named arrays"):
        read_arrays(tmp_path / "weights.pth")
    assert not ran.exists()
    pickle.loads(pickled)
    assert ran.exists()


def test_the_payload_of_that_test_would_run(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Payload(tmp_path / "ran")], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        np.load(tmp_path / "a.npy", allow_pickle=False)
    assert not (tmp_path / "ran").exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert (tmp_path / "ran").exists()
