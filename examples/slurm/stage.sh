#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One stage of the pipeline, run by srun in every task of pipeline.sbatch: the number of the task is the number of the stage.
set -euo pipefail
exec zpptool run-stage --plan "$RUN/zpp.yaml" --stage-idx "$SLURM_PROCID" --device "$DEVICE" \
    --keys "$RUN/keys/stage_$SLURM_PROCID.keys"
