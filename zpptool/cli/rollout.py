# SPDX-License-Identifier: Apache-2.0
"""`zpptool rollout`: every stage of a running pipeline is started anew, one after the other, and no request is lost."""

from __future__ import annotations

from zpptool.cli.options import JsonOption
from zpptool.cli.planned import FrontOption, RunDirOption, carry_out
from zpptool.cli.top import KeyOption
from zpptool.console import Console


def rollout(
    url: FrontOption = None, api_key: KeyOption = None, run_dir: RunDirOption = None, as_json: JsonOption = False
) -> None:
    """Start every stage of a running pipeline anew, one after the other, while it answers.

    Each stage leaves between two steps, is started again by whoever keeps it up, and loads; answers under way wait for
    it and go on with the tokens that they would have had. The next one leaves when the ring is whole and has computed
    something. The head stays, and so has the release: versions have to agree. It ends at the first stage that does not
    come back in the pipeline's --recovery-deadline, and Ctrl-C ends it after the stage that has left.

    Without --url and --run-dir: of the front that `zpptool serve` starts by default, else of the head on this machine.
    """
    from zpptool.pipeline.ring.changes import Rollout, whose

    request = Rollout(by=whose("zpptool rollout"))
    carry_out(request, url=url, api_key=api_key, run_dir=run_dir, console=Console(as_json=as_json))
