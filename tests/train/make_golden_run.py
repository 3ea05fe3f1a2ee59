"""Write a stopped run in the format that this version of the package writes, for later versions.

    python tests/train/make_golden_run.py

Run it whenever `b2b_jax.train.stored.FORMAT` has changed, and add its fingerprint to
test_golden_runs.py. Those of older formats stay as they are: they were written by the package as it
was before the format changed.
"""

import dataclasses
import os
import sys
import tarfile
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = TESTS / "train" / "golden"
KEPT = ("config.yaml", "lineage.json", "metrics.csv", "checkpoints/8")


def unnamed(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def main() -> None:
    sys.path[:0] = [str(TESTS), str(TESTS / "train")]
    from runs import Recorder, tiny_run

    from b2b_jax.commands.train import train_command
    from b2b_jax.train.stored import FORMAT

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that no path of this machine is kept
        config = dataclasses.replace(tiny_run(Path("."), "old"), run_dir="old")
        train_command(config, reporter=Recorder(signal_at=8))
        for file in Path("old").rglob("commit_success.txt"):
            file.write_text("ok")  # Orbax names the folder in it
        with tarfile.open(GOLDEN / f"format{FORMAT}.tar.gz", "w:gz") as archive:
            for name in KEPT:
                archive.add(Path("old") / name, arcname=name, filter=unnamed)


if __name__ == "__main__":
    main()
