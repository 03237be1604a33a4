# SPDX-License-Identifier: Apache-2.0
"""Switches faults on and off inside running processes of a pipeline, which itself knows nothing of it.

A process that has the variable reads a control file before each step: the name of the fault that is on, if any, and the
call whose tensors are saved. Modules are changed when they are imported.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.changed_import import ChangedImport
from zpptool.places import HEAD

VARIABLE = "ZPP_TEST_MUTATIONS"
"""The path of the control file."""
TESTS = Path(__file__).resolve().parents[1]
ENGINE = "zpptool.engines."


def mutable_environment(control: Path) -> dict[str, str]:
    """The variables with which faults can be switched on in a process and its children."""
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    path = os.pathsep.join([str(TESTS / "mutations/plugin"), str(TESTS.parent), *inherited])
    return {VARIABLE: str(control), "PYTHONPATH": path}


def set_control(control: Path, mutation: str = "", target: dict[str, int] | None = None) -> None:
    """Switch a fault on, or with no name off, in all processes."""
    applied_file(control).unlink(missing_ok=True)
    part = control.with_suffix(".part")
    part.write_text(json.dumps({"mutation": mutation, "target": target}))
    part.replace(control)


def applied_file(control: Path) -> Path:
    """The file that exists once the fault has changed something."""
    return control.with_suffix(".applied")


class Switch:
    """The fault that is on in this process."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._seen: tuple[int, int] = (0, 0)
        self.mutation: Any = None
        self.injection: Any = None
        self.target: dict[str, int] | None = None
        self.stage = HEAD
        self.part: Any = None

    def refresh(self) -> None:
        """Do what the control file says, if it has changed."""
        status = self._control.stat()
        if (status.st_mtime_ns, status.st_ino) == self._seen:
            return
        from tests.mutations.catalogue import BY_NAME
        from tests.mutations.mutation import Injection

        self._seen = (status.st_mtime_ns, status.st_ino)
        wanted = json.loads(self._control.read_text())
        self.target = wanted["target"]
        for put_back in reversed(self.injection.undo if self.injection else []):
            put_back()
        mutation = BY_NAME.get(wanted["mutation"])
        self.mutation = mutation if mutation is not None and mutation.stage == self.stage else None
        self.injection = Injection(self.part) if self.mutation else None
        if self.mutation and self.mutation.on_switch:
            self.mutation.on_switch(self.injection)
            self.note()

    def note(self) -> None:
        """Leave a sign that the fault has changed something."""
        if self.injection.applied:
            applied_file(self._control).touch()

    def has(self, hook: str) -> bool:
        """Whether the fault that is on changes this."""
        return self.mutation is not None and getattr(self.mutation, hook) is not None


def install() -> None:
    """Have this process change what it imports."""
    switch = Switch(Path(os.environ[VARIABLE]))
    changes = {
        "transformers.model": _change_model,
        "staging.exchange": _change_exchange,
        "transformers.sampling": _change_sampler,
        "transformers.ring_sequence": _change_head,
        "witness.recorder": _change_recorder,
    }
    for name, change in changes.items():
        sys.meta_path.insert(0, ChangedImport(ENGINE + name, lambda module, change=change: change(module, switch)))


def _change_model(module: Any, switch: Switch) -> None:
    """Faults begin with the part that a stage has loaded; the parts of the proof before it are left alone."""
    load, original = module.load_part, module.PartialModel.step

    def load_part(directory: Path, stage: int, *args: Any, **kwargs: Any) -> Any:
        part = load(directory, stage, *args, **kwargs)
        switch.part, switch.stage = part, stage
        return part

    def step(self: Any, sequence: Any, *inputs: Any) -> Any:
        if self is switch.part:
            switch.refresh()
            if switch.injection is not None:
                number = switch.injection.steps.get(sequence, 0) if sequence in self._sequences else 0
                switch.injection.sequence = sequence
                switch.injection.steps[sequence] = number + 1
                if switch.has("before_step"):
                    switch.injection.applied |= switch.mutation.before_step(switch.injection, sequence, number)
                    switch.note()
        return original(self, sequence, *inputs)

    module.load_part, module.PartialModel.step = load_part, step


def _change_exchange(module: Any, switch: Switch) -> None:
    original = module.TensorExchange.take

    def take(self: Any) -> Any:
        received = original(self)
        states = received.values.get("hidden_states")
        if states is not None:
            switch.refresh()
            if switch.has("on_take"):
                number = switch.injection.kept.setdefault("number", 0)
                switch.injection.kept["number"] = number + 1
                received.values["hidden_states"] = switch.mutation.on_take(switch.injection, states, number)
                switch.note()
        return received

    module.TensorExchange.take = take


def _change_sampler(module: Any, switch: Switch) -> None:
    original = module.Sampler.choose

    def choose(self: Any, logits: Any) -> Any:
        if switch.has("on_logits"):
            logits = switch.mutation.on_logits(switch.injection, logits)
            switch.note()
        choice = original(self, logits)
        if switch.has("on_token"):
            choice = module.Choice(switch.mutation.on_token(switch.injection, choice.token, logits), choice.logprobs)
            switch.note()
        return choice

    module.Sampler.choose = choose


def _change_head(module: Any, switch: Switch) -> None:
    original = module.encode_step

    def encode_step(step: Any) -> bytes:
        switch.refresh()
        if switch.has("on_call"):
            step = switch.mutation.on_call(switch.injection, step)
            switch.note()
        return original(step)

    module.encode_step = encode_step


def _change_recorder(module: Any, switch: Switch) -> None:
    """The call whose tensors are saved is chosen while the process runs."""
    from zpptool.witness.options import CaptureTarget

    original = module.StepRecorder.begin

    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        switch.refresh()
        self._target = CaptureTarget(**switch.target) if switch.target else None
        original(self, *args, **kwargs)

    module.StepRecorder.begin = begin
