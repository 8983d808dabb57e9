"""Loads and checks configurations: Python files, dotted command-line overrides, stored runs. Imports no jax."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from datar_jax.config import MODELS, Config, ConfigError, ModelConfig, StrictStruct
from datar_jax.config.base import did_you_mean
from datar_jax.config.migration import renamed, upgrade
from datar_jax.config.mixers import LETTERS, MIXER_SETTINGS
from datar_jax.foreign_files import read_regular
from datar_jax.typed_json import decode_json

MAX_BYTES = 1 << 20  # of a stored configuration
STORED = (".json", ".toml")  # suffixes of configurations that run nothing
PACKAGE = Path(__file__).parent.parent
CONFIGS = PACKAGE / "configs", PACKAGE.parent / "configs"  # as installed, and in a checkout


def load_config(
    path: str | Path,
    overrides: dict[str, str] | None = None,
    base: Callable[[str], dict[str, Any]] | None = None,
) -> Config:
    """Loads the configuration of a file and applies command-line overrides.

    Args:
      path: a Python file with `get_config() -> Config`, which is run, or the name of one in configs/, such as "folder";
        or the `config.json` of a run, or TOML with the same fields, which run nothing.
      overrides: dotted field (`optim.learning_rate`) to its value as text. `model` takes the name of a variant.
      base: gives the sections that come with the model of `init.from`, such as its front end; overrides are
        applied after them. None: the sections of the file. A stored configuration has these sections already; they
        are asked for only if the overrides name another model.

    Raises:
      ConfigError: no such file, no such field, a value of another type, or values that contradict each other.
    """
    path, overrides = config_file(path), overrides or {}
    stored = path.suffix in STORED
    tree = msgspec.to_builtins(read_stored(path, "give a file that a run wrote") if stored else _run_python(path))
    source = overrides.get("init.from", "" if stored else tree["init"]["from"])
    if source and base:
        tree |= base(source)
    for field, text in sorted(overrides.items(), key=lambda item: item[0].count(".")):
        _override(tree, field, text)
    return from_dict(tree)


def _run_python(path: Path) -> Config:
    """The configuration that a Python file makes."""
    if path.suffix != ".py":
        raise ConfigError(
            f"--config={path}: not a Python file with get_config(), such as those in configs/, nor the "
            f"configuration of a run ({', '.join(STORED)})"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={path}: has no get_config(); see the files in configs/")
    return _get_config(path, module.get_config)


def config_file(path: str | Path) -> Path:
    """The file of a path, or of a name in configs/.

    Raises:
      ConfigError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    folder = next(each for each in CONFIGS if each.is_dir())
    if path.parent == Path() and (folder / f"{path.stem}.py").is_file() and path.suffix in ("", ".py"):
        return folder / f"{path.stem}.py"
    beside = sorted(map(str, path.parent.glob("*.py"))) if path.parent != Path() else []
    known = sorted(each.stem for each in folder.glob("*.py") if each.stem != "__init__")
    there = f"{path.parent} has: {', '.join(beside)}; " if beside else ""
    hint = did_you_mean(path.stem, known)
    raise ConfigError(f"--config={path}: no such file; {hint}{there}by name there are {', '.join(known)}")


def _get_config(path: Path, get_config: Callable[[], Config]) -> Config:
    """Calls `get_config`; a field that was renamed since the file was written is reported with its new name."""
    try:
        return get_config()
    except TypeError as error:
        found = re.search(r"Unexpected keyword argument '(\w+)'|has no field '(\w+)'", str(error))
        if found and (change := renamed(name := found[1] or found[2])):
            raise ConfigError(f"--config={path}: {name} {change}") from None
        raise


def read_overrides(arguments: list[str], usage: str) -> dict[str, str]:
    """Dotted fields and their values as text, from `--config.path.to.field=value` or `... value`.

    Raises:
      ConfigError: another option, or one without a value.
    """
    found = {}
    queue = list(arguments)
    while queue:
        option = queue.pop(0)
        name, given, value = option.partition("=")
        if not name.startswith("--config."):
            advice = _elsewhere(name.strip("-").replace("-", "_"), "--config.")
            advice = advice or did_you_mean(name, re.findall(r"--[a-z][a-z-]*(?=[=\]])", usage))
            raise ConfigError(f"{option}: not an option; {advice}usage: {usage}")
        if not given:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(f"{option}: has no value; write {option}=VALUE")
            value = queue.pop(0)
        found[name.removeprefix("--config.")] = value
    return found


def from_dict(tree: dict[str, Any]) -> Config:
    """Builds a checked configuration from plain values (a resolved `config.json`).

    Raises:
      ConfigError: as `load_config`.
    """
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        found = re.search(r"unknown field `(\w+)`(?: - at `\$\.([\w.]+)`)?", str(error))
        change = found and renamed(".".join(filter(None, (found[2], found[1]))))
        advice = f"it {change}" if change else "compare with datar_jax/config/"
        raise ConfigError(f"{str(error).replace('`$.', '`')}; {advice}") from None


def read_stored(path: Path, remedy: str = "delete it, or give another --workdir") -> Config:
    """Reads the `config.json` of a run, also one of an earlier version, or TOML with today's fields.

    Raises:
      ConfigError: as `load_config`, or it cannot be read; names the file, and what to do.
    """
    try:
        content = read_regular(path, MAX_BYTES)
        if path.suffix == ".toml":
            return decode_json(msgspec.json.encode(tomllib.loads(content.decode())), Config)
        return decode_json(content, Config, upgrade)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path}: it is nested too deeply; {remedy}") from None
    except (ValueError, TypeError) as error:  # of JSON, of TOML, of UTF-8, and of a date, which JSON has none of
        raise ConfigError(f"{path}: {error}; {remedy}") from None


def _override(tree: dict[str, Any], field: str, text: str) -> None:
    """Sets one dotted field of `tree` from its value as text."""
    names = field.split(".")
    node: dict[str, Any] = tree
    kind: Any = Config
    for depth, name in enumerate(names):
        if not (isinstance(kind, type) and issubclass(kind, StrictStruct)):
            raise ConfigError(f"{field}: {'.'.join(names[:depth])} has no fields of its own")
        hints = _fields(kind)
        if name not in hints:
            where = ".".join(names[:depth])
            if change := renamed(field):
                raise ConfigError(f"{field}={text!r}: {field} {change}")
            near = did_you_mean(name, hints).replace("mean ", f"mean {where}." if where else "mean ").strip()
            advice = _elsewhere(name).strip() or near or f"known: {', '.join(hints)}"
            raise ConfigError(f"{field}={text!r}: {where or 'the configuration'} has no field {name!r}; {advice}")
        kind = hints[name]
        if depth + 1 < len(names):
            node = node[name]
    if kind is ModelConfig:
        if text not in MODELS:
            raise ConfigError(
                f"{field}={text!r}: no such variant; {did_you_mean(text, MODELS)}choose one of {', '.join(MODELS)}"
            )
        node[names[-1]] = msgspec.to_builtins(MODELS[text]())
        return
    if isinstance(kind, type) and issubclass(kind, StrictStruct):
        raise ConfigError(f"{field}={text!r}: a group of fields; set one of {', '.join(_fields(kind))}")
    node[names[-1]] = _parse(field, text, kind)
    if field == "model.spec":
        _reset_unused_mixers(node)


def _elsewhere(name: str, prefix: str = "") -> str:
    """Advice where a name is that of fields of other sections, or their initials (`lr`); empty if it is not."""
    found = []
    for field in _paths(Config):
        last = field.rpartition(".")[2]
        if name in (last, "".join(word[0] for word in last.split("_"))):
            found.append(prefix + field)
    return f"did you mean {' or '.join(found[:3])}? " if found else ""


def _paths(kind: type[StrictStruct], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields."""
    for name, inner in _fields(kind).items():
        if isinstance(inner, type) and issubclass(inner, StrictStruct):
            yield from _paths(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _reset_unused_mixers(model: dict[str, Any]) -> None:
    """Resets the settings of mixers that an overridden `model.spec` has no block of; their own overrides come later."""
    used = {LETTERS[letter] for letter in "".join(model["spec"]) if letter in LETTERS}
    model |= {kind.field: msgspec.to_builtins(kind()) for kind in MIXER_SETTINGS if kind not in used}


def _fields(kind: type[StrictStruct]) -> dict[str, Any]:
    """Types of the fields of some settings, by their names on the command line."""
    hints = get_type_hints(kind)
    return {field.encode_name: hints[field.name] for field in msgspec.structs.fields(kind)}


def _parse(field: str, text: str, kind: Any) -> Any:
    """The value that `text` spells for a field of type `kind`."""
    value: Any = text
    if getattr(kind, "__origin__", None) is tuple:
        inner = text.strip().replace("(", "[").replace(")", "]").replace(",]", "]")
        if str in get_args(kind):
            value = [part.strip(" \"'") for part in inner.strip("[]").split(",")]
        else:
            value = _decode(inner)
            value = _decode(f"[{inner}]") if not isinstance(value, list) else value
    elif kind is bool:
        value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(f"{field}={text!r}: {_expected(kind, text)}") from None


def _decode(text: str) -> Any:
    """The value of a JSON text; None if it is not JSON."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


def _expected(kind: Any, text: str) -> str:
    if kind == tuple[tuple[int, int], ...]:
        return "give pairs with commas between, such as (8,8),(4,8)"
    if choices := [a for a in get_args(kind) if isinstance(a, str)]:
        return f"{did_you_mean(text, choices)}choose one of {', '.join(choices)}"
    names = {int: "give a whole number", float: "give a number", bool: "give true or false"}
    return names.get(kind, "give numbers with commas between, such as 1,2,3")
