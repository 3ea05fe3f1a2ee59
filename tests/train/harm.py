"""Damage to checkpoints, for the tests."""

import shutil
from pathlib import Path


def data_files(run_dir: str, step: int) -> list[Path]:
    """Files of array data of one checkpoint, the largest first."""
    files = (Path(run_dir) / "checkpoints" / str(step)).rglob("d/*")
    return sorted(files, key=lambda path: path.stat().st_size, reverse=True)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def flip_an_array(run_dir: str, step: int) -> None:
    """Change one bit of every file that holds arrays."""
    for path in data_files(run_dir, step):
        flip(path)


def truncate(run_dir: str, step: int) -> None:
    path = data_files(run_dir, step)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_metadata(run_dir: str, step: int) -> None:
    """Change a letter of what Orbax knows of the arrays."""
    path = Path(run_dir) / "checkpoints" / str(step) / "params" / "_METADATA"
    path.write_text(path.read_text().replace("embeddings", "embeddingz"))


def remove_meta(run_dir: str, step: int) -> None:
    shutil.rmtree(Path(run_dir) / "checkpoints" / str(step) / "meta")
