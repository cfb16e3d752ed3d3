"""Feed mutated checkpoints, sharded folders, hyperparameter files, configurations and command lines to what reads them.

Each input is a good one in which bytes, lines, words or values were changed, by chance and by known tricks: pickles
that call functions, YAML with Python tags, class paths of modules that must not be imported. Counted are: imports,
programs and connections that an input brought about; errors that are none of the documented ones; and inputs that took
more than a second of CPU.

    python benchmarks/fuzz_inputs.py                            # 100,000 inputs
    python benchmarks/fuzz_inputs.py --inputs 5000 --seed 7 --only checkpoint,yaml --show 10
    python benchmarks/fuzz_inputs.py --quick
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from fulmen.cli import LightningCLI
from fulmen.fabric.checkpoint_io import TorchCheckpointIO, load_sharded, save_sharded
from fulmen.fabric.errors import CheckpointError, MisconfigurationException
from fulmen.trainer import Trainer
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.core.hparams_files import load_hparams_from_yaml
from fulmen.trainer.demos import BoringModel

BATCH = 500
LIMIT_S = 1.0
CANARY = "fulmen_canary"  # a module that can be imported, and must not be
MEMORY = 16 * 2**30
# Nothing that reads an input may do any of these.
FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn", "socket.connect")
# How often each kind is chosen, relative to the others.
SHARES = {"checkpoint": 40, "content": 8, "folder": 10, "yaml": 38, "config": 2, "command line": 2}


class Net(BoringModel):
    """What the configurations describe, and the checkpoints are of."""

    def __init__(self, width: int = 3, lr: float = 0.1, name: str | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()


class Calls:
    """Pickled, it is a call of a function."""

    def __reduce__(self) -> Any:
        return random.choice([(os.system, ("true",)), (__import__, (CANARY,)), (eval, ("__import__('this')",))])


# ---- good inputs


@dataclass(frozen=True)
class Good:
    """Good inputs of each kind."""

    files: list[bytes]
    content: dict[str, Any]
    folder: Path
    texts: list[str]
    configs: list[str]
    lines: list[list[str]]


def make_good(folder: Path) -> Good:
    """All of them, made by us."""
    checkpoint = ModelCheckpoint(folder / "run", every_n_train_steps=1)
    flags: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    Trainer(**flags, max_steps=2, callbacks=[checkpoint], enable_model_summary=False, default_root_dir=folder).fit(
        Net(width=4)
    )
    sealed = Path(checkpoint.best_model_path).read_bytes()
    content = torch.load(checkpoint.best_model_path, weights_only=True)
    plain, tricked, bare = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(content, plain)
    torch.save({**content, "callbacks": Calls()}, tricked)
    torch.save({"w": torch.ones(2)}, bare, _use_new_zipfile_serialization=False)
    files = [sealed, plain.getvalue(), tricked.getvalue(), bare.getvalue(), pickle.dumps(Calls())]
    save_sharded(folder / "sharded", {"w": torch.ones(100), "step": 3, "more": {"lr": 0.1, "name": "x"}})
    texts = [
        "width: 3\nlr: 0.1\nname: a\nlayers: [1, 2, {a: 3}]\n",
        f"a: !!python/object/apply:os.system ['true']\nb: !!python/name:{CANARY}.Thing\n",
        f"_instantiator: {CANARY}.make\nx: {{class_path: {CANARY}.Thing, init_args: {{a: 1}}}}\n",
        "a: &a [1, 2]\nb: *a\nc: 2020-01-01\nd: !!binary aGVsbG8=\ne: |\n  text\n",
        "&a [*a, *a]\n",
    ]
    configs = [
        "trainer:\n  max_epochs: 3\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {monitor: x}\nmodel:\n"
        "  width: 4\n",
        f"trainer:\n  callbacks:\n  - class_path: {CANARY}.Thing\n  logger: {{class_path: {CANARY}.Thing}}\n",
        f"model:\n  name: !!python/object/apply:os.system ['true']\n  lr: 1e-3\nseed_everything: {CANARY}\n",
    ]
    lines = [
        ["--trainer.max_epochs=3", "--model.width", "4", "--trainer.logger=False"],
        [f"--trainer.callbacks+={CANARY}.Thing", "--trainer.callbacks.a=1"],
        [f"--trainer.logger={CANARY}.Thing", "--model.name", "${oc.env:PATH}"],
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=x", "--trainer.precision", "16-mixed"],
    ]
    return Good(files, content, folder / "sharded", texts, configs, lines)


# ---- mutations

_WORDS = [
    *(
        "",
        "null",
        "true",
        "-1",
        "1e999",
        "nan",
        "0x10",
        "1" * 400,
        "[]",
        "{}",
        "[[[[",
        "}",
        "'",
        '"',
        "\n",
        "\t",
        "\x00",
    ),
    *("é\u202e", "!!python/name:os.system", "!!python/module:this", f"!!python/object/new:{CANARY}.Thing", "*a", "&a"),
    *("<<: *a", "class_path: this.Zen", f"{CANARY}.Thing", "os.system", "builtins.eval", "../../../x", "/dev/zero"),
    *("http://127.0.0.1:9/x", "${oc.env:HOME}", "%s%s%n", "__class__", "_instantiator", "=", "--", "+", "- "),
]


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """Some bytes flipped, cut out, doubled, or put in."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8, 64])):
        at = chance.randrange(len(changed) or 1)
        kind = chance.randrange(6)
        if kind == 0 and changed:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + chance.randrange(1, 64)] = b""
        elif kind == 2:
            changed[at:at] = changed[at : at + chance.randrange(64)]
        elif kind == 3:
            changed[at:at] = chance.randbytes(chance.randrange(1, 16))
        elif kind == 4:
            changed[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"PK\x03\x04"])
        elif chance.random() < 0.1:
            del changed[at:]
    return bytes(changed)


def mutate_text(text: str, chance: random.Random) -> str:
    """Some words and lines exchanged, doubled, lost."""
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        at = chance.randrange(len(text) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            text = text[:at] + chance.choice(_WORDS) + text[at + chance.randrange(8) :]
        elif kind == 1:
            text = text[:at] + text[at + chance.randrange(1, 16) :]
        elif kind == 2:
            lines = text.splitlines(keepends=True)
            chance.shuffle(lines)
            text = "".join(lines)
        elif kind == 3:
            text = text[:at] + chr(chance.randrange(0x300)) + text[at:]
        else:
            text = text[:at] + text[max(0, at - 30) : at] * chance.choice([1, 2, 200]) + text[at:]
    return text


def mutate_value(value: Any, chance: random.Random) -> Any:
    """One value, somewhere inside, becomes another one."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        changed = dict(value)
        if chance.random() < 0.1:
            del changed[key]
        elif chance.random() < 0.1:
            changed[chance.choice([*_WORDS, 3, None, "_instantiator", "class_path"])] = changed.pop(key)
        else:
            changed[key] = mutate_value(value[key], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], mutate_value(value[at], chance), *value[at + 1 :]]
    others: list[Any] = [
        None,
        -1,
        10**30,
        float("nan"),
        [],
        {},
        True,
        torch.ones(3),
        torch.tensor(1 + 2j),
        {"class_path": "this.Zen"},
    ]
    return chance.choice([*others, *_WORDS])


# ---- what reads them: each gets a mutated input, and where it may write


def read_file(good: Good, chance: random.Random, place: Path) -> None:
    """A checkpoint, byte by byte."""
    path = place / "a.ckpt"
    path.write_bytes(mutate_bytes(chance.choice(good.files), chance))
    TorchCheckpointIO().load_checkpoint(path)


def read_content(good: Good, chance: random.Random, place: Path) -> None:
    """A checkpoint with another content, and a module from it."""
    path = place / "a.ckpt"
    content = copy.copy(good.content)
    for _ in range(chance.choice([1, 1, 3])):
        content = mutate_value(content, chance)
    torch.save(content, path)
    Net.load_from_checkpoint(path, map_location="cpu")


def read_folder(good: Good, chance: random.Random, place: Path) -> None:
    """A folder of shards, one file of it mutated."""
    folder = place / "sharded"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good.folder, folder)
    path = chance.choice(sorted(folder.iterdir()))
    path.write_bytes(mutate_bytes(path.read_bytes(), chance) if chance.random() < 0.9 else pickle.dumps(Calls()))
    load_sharded(folder, {"w": torch.zeros(100), "step": 0, "more": {"lr": 0.0, "name": ""}})


def read_yaml(good: Good, chance: random.Random, place: Path) -> None:
    """Hyperparameters."""
    path = place / "hparams.yaml"
    path.write_text(mutate_text(chance.choice(good.texts), chance), encoding="utf-8", errors="replace", newline="")
    load_hparams_from_yaml(path)


def read_config(good: Good, chance: random.Random, place: Path) -> None:
    """A configuration of the command line."""
    path = place / "config.yaml"
    path.write_text(mutate_text(chance.choice(good.configs), chance), encoding="utf-8", errors="replace", newline="")
    call(["--config", str(path)])


def read_line(good: Good, chance: random.Random, place: Path) -> None:
    """A command line."""
    words = list(chance.choice(good.lines))
    for _ in range(chance.choice([1, 2, 4])):
        at = chance.randrange(len(words))
        kind = chance.randrange(4)
        if kind == 0:
            words[at] = mutate_text(words[at], chance)
        elif kind == 1:
            words.insert(at, chance.choice(_WORDS))
        elif kind == 2:
            chance.shuffle(words)
        else:
            words.append(chance.choice(chance.choice(good.lines)))
    call([word.replace("\x00", "") for word in words])


def call(arguments: list[str]) -> None:
    """As the command does, up to the objects."""
    LightningCLI(Net, run=False, args=arguments, save_config_callback=None, seed_everything_default=False)


READERS: dict[str, Callable[[Good, random.Random, Path], None]] = {
    "checkpoint": read_file,
    "content": read_content,
    "folder": read_folder,
    "yaml": read_yaml,
    "config": read_config,
    "command line": read_line,
}


# ---- feeding


class Watch:
    """Sees what the interpreter is asked to do."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.is_on = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "import":
            name = str(arguments[0])
            # Parts of what is there already may be loaded late.
            if name not in sys.modules and name.partition(".")[0] in (CANARY, "this", "antigravity"):
                self.seen.append(f"import {name}")
        elif event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r}"[:200])


def is_documented(error: BaseException) -> bool:
    """Is it an error that a user is promised for bad input?"""
    if isinstance(error, SystemExit):
        return error.code in (0, 2)
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return True  # of torch, naming the keys
    return isinstance(error, (CheckpointError, MisconfigurationException))


def feed(kind: str, good: Good, seed: str, place: Path, watch: Watch) -> tuple[str, str] | None:
    """One input. Returns what was wrong, and the details."""
    watch.seen.clear()
    started_s = time.process_time()
    verdict: tuple[str, str] | None = None
    watch.is_on = True
    try:
        with in_silence():
            READERS[kind](good, random.Random(seed), place)
    except BaseException as error:
        if not is_documented(error):
            told = traceback.format_exception_only(error)[-1].strip()[:200]
            where = traceback.extract_tb(error.__traceback__)[-1]
            verdict = ("crash", f"{told} ({Path(where.filename).name}:{where.lineno})")
    finally:
        watch.is_on = False
    if watch.seen:
        return "import", "; ".join(watch.seen)
    if verdict is None and time.process_time() - started_s > LIMIT_S:
        return "slow", f"{time.process_time() - started_s:.1f} s"
    return verdict


@contextlib.contextmanager
def in_silence() -> Iterator[None]:
    """Inside, nothing is printed."""
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        yield


def feed_batch(numbers: range, good: Good, seed: int, kinds: list[str], place: Path) -> Iterator[dict[str, Any]]:
    """A batch, in a process of its own: one that crashes takes nobody with it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        watch = Watch()
        with open(writer, "w") as told:
            for number in numbers:
                one = f"{seed} {number}"
                kind = random.Random(one).choices(kinds, [SHARES[name] for name in kinds])[0]
                print(json.dumps({"number": number, "kind": kind}), file=told, flush=True)
                wrong = feed(kind, good, one, place, watch)
                print(json.dumps({"wrong": wrong}), file=told, flush=True)
        os._exit(0)
    os.close(writer)
    with open(reader) as heard:
        said = [json.loads(line) for line in heard]
    _, status = os.waitpid(pid, 0)
    for begun, ended in zip(said[::2], [*said[1::2], None], strict=False):
        outcome: Any = ended["wrong"] if ended else ["crash", f"the process ended: status {status}"]
        yield {**begun, "wrong": outcome}


def main() -> int:
    """Command line; 1 if anything was imported, crashed or slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all")
    parser.add_argument("--seed", type=int, default=None, help="printed; input n is made of it and n")
    parser.add_argument("--only", default=",".join(SHARES), help="kinds of inputs: " + ", ".join(SHARES))
    parser.add_argument("--show", type=int, default=5, help="so many examples of each kind of mistake")
    parser.add_argument("--quick", action="store_true", help="200 inputs")
    options = parser.parse_args()
    kinds = [kind.strip() for kind in options.only.split(",")]
    if unknown := set(kinds) - set(SHARES):
        parser.error(f"--only {', '.join(unknown)} is unknown")
    inputs = 200 if options.quick else options.inputs
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    try:
        (root / f"{CANARY}.py").write_text("class Thing: ...\n")
        sys.path.insert(0, str(root))
        good = make_good(root / "good")
        place = root / "place"
        place.mkdir()
        os.chdir(place)
        warm_up(good, place)
        for start in range(0, inputs, BATCH):
            numbers: range | None = range(start, min(start + BATCH, inputs))
            while numbers:
                last = numbers.start
                for one in feed_batch(numbers, good, seed, kinds, place):
                    last = one["number"] + 1
                    counts[one["kind"], "inputs"] += 1
                    if one["wrong"]:
                        what, details = one["wrong"]
                        counts[one["kind"], what] += 1
                        examples.setdefault((one["kind"], what), []).append(f"input {one['number']}: {details}")
                numbers = range(last, numbers.stop)
    finally:
        os.chdir("/")
        shutil.rmtree(root)
    return show(counts, examples, options.show)


def warm_up(good: Good, place: Path) -> None:
    """Import what good inputs need, once."""
    for kind, reader in READERS.items():
        for number in range(8):
            with contextlib.suppress(BaseException), in_silence():
                reader(good, random.Random(f"{kind} {number}"), place)
    yaml.safe_load("a: 1")


def show(counts: Counter[tuple[str, str]], examples: dict[tuple[str, str], list[str]], num_shown: int) -> int:
    """Print the table."""
    print("| read | inputs | imports | crashes | above 1 s | |\n|---|---:|---:|---:|---:|---|")
    failed = False
    for kind in SHARES:
        if counts[kind, "inputs"]:
            numbers = [counts[kind, what] for what in ("import", "crash", "slow")]
            failed |= any(numbers)
            cells = (kind, counts[kind, "inputs"], *numbers, "fail" if any(numbers) else "pass")
            print("| " + " | ".join(map(str, cells)) + " |")
    for (kind, what), found in examples.items():
        print(*(f"{kind}, {what}: {one}" for one in found[:num_shown]), sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
