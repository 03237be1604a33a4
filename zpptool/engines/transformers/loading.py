# SPDX-License-Identifier: Apache-2.0
"""Load part of a transformers model: every weight that the stage owns, and no byte of any other.

transformers' own loader does the work (renames, stacked experts, tied weights, quantised formats) on those tensors of
the checkpoint that the stage owns. After it has loaded them, and before it initialises missing ones, the modules
without weights are replaced (`zpptool.engines.transformers.surgery`), so nothing is ever initialised at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from zpptool.checkpoint.index import TensorInfo
from zpptool.engines.transformers.model_class import model_class
from zpptool.engines.transformers.surgery import Passage, cut_layers, stand_in_for
from zpptool.engines.weights import DTYPES, read_tensor
from zpptool.errors import invalid_error
from zpptool.partition import LayerRange
from zpptool.process.progress import loading_progress


class StoredTensor:
    """A tensor that is still in its file, with the interface of safetensors' slice, which transformers' loader
    takes."""

    def __init__(self, info: TensorInfo, report_read: Callable[[int], None]) -> None:
        self.info = info
        self.shape = info.shape
        self._report_read = report_read

    @property
    def dtype(self) -> torch.dtype:
        """As `torch.Tensor.dtype`."""
        return DTYPES[self.info.dtype]

    def get_dtype(self) -> str:
        """The dtype's name in the safetensors format."""
        return self.info.dtype

    def is_floating_point(self) -> bool:
        """As `torch.Tensor.is_floating_point`."""
        floating: bool = self.dtype.is_floating_point
        return floating

    def __getitem__(self, _everything: object) -> Tensor:
        """The whole tensor; reads its bytes and no others."""
        tensor = read_tensor(self.info)
        self._report_read(self.info.nbytes)
        return tensor


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers' progress bars out of a stage's log."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_config(directory: Path) -> PreTrainedConfig:
    """The checkpoint's config as transformers reads it.

    Raises:
        ZppError: (INVALID) transformers does not know the model, or it would run code from the checkpoint.
    """
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as cause:
        raise invalid_error(f"transformers cannot read the config of {directory}: {cause}") from cause


def load_cut_model(
    config: PreTrainedConfig,
    tensors: Iterable[TensorInfo],
    owned: LayerRange,
    passage: Passage,
    dtype: str | torch.dtype,
    device: str,
) -> PreTrainedModel:
    """Build the model on the meta device, cut it to the layers `owned`, and load `tensors` into what remains.

    Raises:
        ZppError: (INVALID) transformers has no class for the config that generates text, a tensor that the stage's
            layers need is not among `tensors`, or one does not fit.
    """
    whole_class, config = model_class(config)
    part = _part_of(whole_class, owned, passage)
    stored = list(tensors)
    report_read = loading_progress(sum(info.nbytes for info in stored))
    state = {info.name: StoredTensor(info, report_read) for info in stored}
    try:
        with no_progress_bars():
            model, report = part.from_pretrained(
                None, config=config, state_dict=state, dtype=dtype, device_map={"": device}, output_loading_info=True
            )
    except RuntimeError as cause:
        raise invalid_error(f"the tensors of layers {owned} do not fit the model: {cause}") from cause
    held = chain(model.named_parameters(), model.named_buffers())
    missing = sorted({*report["missing_keys"], *(name for name, tensor in held if tensor.is_meta)})
    if missing:
        raise invalid_error(f"the checkpoint holds no tensor for {', '.join(missing)}, which this stage needs")
    return model


def _part_of(whole_class: type[PreTrainedModel], owned: LayerRange, passage: Passage) -> type[PreTrainedModel]:
    """A subclass of `whole_class` that is cut to the layers `owned` when it is built, and to the present weights when
    it is loaded.

    The class keeps its name and module: transformers looks conversions up by them.
    """

    def __init__(self: PreTrainedModel, config: PreTrainedConfig) -> None:
        whole_class.__init__(self, config)
        cut_layers(self, owned, passage)

    def _finalize_model_loading(model: PreTrainedModel, load_config: Any, loading_info: Any) -> Any:
        _replace_missing(model, loading_info, passage)
        return whole_class._finalize_model_loading(model, load_config, loading_info)

    body = {
        "__init__": __init__,
        "_finalize_model_loading": staticmethod(_finalize_model_loading),
        "__module__": whole_class.__module__,
        "__doc__": whole_class.__doc__,
    }
    return type(whole_class.__name__, (whole_class,), body)


def _replace_missing(model: PreTrainedModel, loading_info: Any, passage: Passage) -> None:
    """Replace the modules that got no weights, unless their weights are tied to present ones."""
    present = model.state_dict().keys() - loading_info.missing_keys
    tied = model.all_tied_weights_keys  # target to source; transformers ties either to the other
    will_be_tied = {name for pair in tied.items() if not present.isdisjoint(pair) for name in pair}
    stand_in_for(model, loading_info.missing_keys - will_be_tied, passage)
    left = model.state_dict().keys()
    loading_info.missing_keys &= left
    model.all_tied_weights_keys = {
        target: source for target, source in tied.items() if target in left and source in left
    }
