"""Writing what a report consists of (effects: files)."""

from collections.abc import Mapping
from pathlib import Path


def write_files(folder: str | Path, contents: Mapping[str, str | bytes]) -> tuple[Path, ...]:
    """Write files of a folder, replacing earlier ones; if one cannot be written, none changes.

    Args:
        folder: made if missing.
        contents: file name -> text or bytes.

    Returns:
        the paths, in the order given.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.tmp" for name in contents}
    try:
        for name, content in contents.items():
            data = content.encode("utf-8") if isinstance(content, str) else content
            temporary[name].write_bytes(data)
        for name, path in temporary.items():
            path.replace(folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return tuple(folder / name for name in contents)
