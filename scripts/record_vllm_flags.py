# SPDX-License-Identifier: Apache-2.0
"""Record the flags of `vllm serve` of a release, so that zpptool can check them without vLLM.

    python scripts/record_vllm_flags.py                          the installed release
    python scripts/record_vllm_flags.py --wheel vllm-0.33.0.whl  any release, on any machine

Writes zpptool/config/vllm_flags/RELEASE.json: each flag, and how many values it takes. vLLM is not imported: its source
is read (vllm_flags_of_source.py), so neither a GPU nor torch is needed. Run it once for each release.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import zipfile
from pathlib import Path

from vllm_flags_of_source import Source, flags_of_source

from zpptool.config.engine_flags import RECORDS, release_of

NOT_FOR_STAGES = ("-h", "--help", "--config")
"""vLLM's help, and its own file of flags, which zpptool reads as --vllm-config."""


def source_of_wheel(path: Path) -> tuple[str, Source]:
    """The release and the source in a wheel."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        release = release_of(path.name.split("-")[1])
        return release, Source(lambda name: wheel.read(name).decode() if name in names else None, iter(sorted(names)))


def source_of_installation() -> tuple[str, Source]:
    """The release that is installed, and its source; it is located without being imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("vLLM is not installed: name a wheel with --wheel FILE")
    root = Path(spec.submodule_search_locations[0]).parent
    package = importlib.metadata.packages_distributions()["vllm"][0]
    files = (path.relative_to(root).as_posix() for path in sorted((root / "vllm/config").rglob("*.py")))

    def read(name: str) -> str | None:
        return (root / name).read_text() if (root / name).is_file() else None

    return release_of(importlib.metadata.version(package)), Source(read, files)


def flags_of(source: Source) -> dict[str, str]:
    """The flags to record."""
    return {name: kind for name, kind in sorted(flags_of_source(source).items()) if name not in NOT_FOR_STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the flags of `vllm serve`.")
    parser.add_argument("--wheel", type=Path, help="read this wheel instead of the installed vLLM")
    wheel: Path | None = parser.parse_args().wheel
    release, source = source_of_wheel(wheel) if wheel is not None else source_of_installation()
    flags = flags_of(source)
    path = Path(RECORDS) / f"{release}.json"
    path.write_text(json.dumps({"vllm": release, "flags": flags}, indent=1) + "\n")
    print(f"{path}: {len(flags)} flags")


if __name__ == "__main__":
    main()
