# SPDX-License-Identifier: Apache-2.0
"""Whether a stage's links are safe on the networks they use, checked before anything is started."""

from __future__ import annotations

import logging
from pathlib import Path

from zpptool.config.stage_spec import StageSpec
from zpptool.errors import usage_error
from zpptool.places import HEAD
from zpptool.wire.security.exposure import LinkSecurity, exposure, require
from zpptool.wire.security.key_files import link_keys, read_key_file
from zpptool.wire.sockets import check_endpoint

_logger = logging.getLogger(__name__)


def check_safety(spec: StageSpec) -> None:
    """Refuse a stage whose links unknown machines could use; log a warning where the user allows it (`--insecure`).

    Raises:
        ZppError: (USAGE) keys and no keys are asked for; (INVALID) the key file cannot be used, or is another stage's;
            (ADDRESS) an endpoint is not valid, or other machines can reach it and there are no keys.
    """
    if spec.keys and spec.insecure:
        raise usage_error("--keys and --insecure contradict each other", "Give one of them; ZPP_KEYS counts as --keys.")
    after = HEAD if spec.is_last else spec.stage + 1
    before = spec.num_stages - 1 if spec.is_first else spec.stage - 1
    receiver = HEAD if spec.is_first else spec.stage
    for place, peer, endpoint in ((spec.stage, after, spec.bind), (receiver, before, spec.connect)):
        check_endpoint(endpoint, bind=endpoint == spec.bind)
        keys = link_keys(read_key_file(Path(spec.keys)), place, peer) if spec.keys else None
        require(endpoint, LinkSecurity(keys, spec.insecure))
    exposed = [endpoint for endpoint in (spec.bind, spec.connect) if exposure(endpoint)]
    if spec.insecure and exposed:
        _logger.warning(
            "--insecure: %s WITHOUT encryption and authentication: any machine that reaches them can read all"
            " activations and tokens, change them, and end the pipeline",
            " and ".join(exposed),
        )
