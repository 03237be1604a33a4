# SPDX-License-Identifier: Apache-2.0
"""`zpptool cache`: what was fetched into the store, and how to free it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from zpptool.cli.examples import epilog
from zpptool.cli.options import JsonOption
from zpptool.console import Console, human_bytes
from zpptool.errors import invalid_error, usage_error

cache_app = typer.Typer(help="Show and free what was fetched.", no_args_is_help=True)


@cache_app.command("list", epilog=epilog("cache list"))
def cache_list(as_json: JsonOption = False) -> None:
    """Show the stages and models in the store, with what interrupted fetches have left.

    Whole models of the Hub are in the Hugging Face cache, which `hf cache ls` shows.
    """
    from zpptool.sources.inventory import stored_entries
    from zpptool.sources.store import store_directory

    store = store_directory()
    entries = stored_entries(store)
    payload: dict[str, Any] = {
        "store": str(store),
        "bytes": sum(entry.nbytes for entry in entries),
        "entries": [
            {
                "source": entry.source or None,
                "stage": entry.stage,
                "layers": entry.layers or None,
                "bytes": entry.nbytes,
                "whole": entry.is_whole,
                "directory": str(entry.directory),
            }
            for entry in entries
        ],
    }

    def show(out: Console) -> None:
        rows = [
            (
                entry.source or "an interrupted fetch",
                "" if entry.stage is None else entry.stage,
                entry.layers,
                human_bytes(entry.nbytes),
                entry.directory,
            )
            for entry in entries
        ]
        out.table("", ("model", "stage", "layers", "size", "directory"), rows, right=("stage", "size"))
        out.line(f"{human_bytes(payload['bytes'])} in {store}")

    Console(as_json=as_json).result(payload, show)


@cache_app.command("remove", epilog=epilog("cache remove"))
def cache_remove(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="As `cache list` shows it, or org/name.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Remove everything in the store.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove models, all their stages, and what interrupted fetches of them have left. The Hugging Face cache is not
    touched.

    A branch that was fetched is looked up again the next time. What a running pipeline has open stays on the disk until
    it ends.
    """
    from zpptool.sources.inventory import remove_entries, stored_entries
    from zpptool.sources.store import store_directory

    if every == bool(models):
        raise usage_error("what is to be removed?", "Name models, or give --all.")
    store = store_directory()
    entries = stored_entries(store)
    chosen = [entry for entry in entries if every or any(entry.is_of(name) for name in models or ())]
    missing = [name for name in models or () if not any(entry.is_of(name) for entry in entries)]
    if missing:
        raise invalid_error(f"{missing[0]} is not in {store}", "zpptool cache list shows what is.")
    freed = remove_entries(store, chosen)
    payload = {"store": str(store), "removed": len(chosen), "bytes": freed}
    Console(as_json=as_json).result(
        payload, lambda out: out.line(f"removed {len(chosen)} entries, {human_bytes(freed)}")
    )
