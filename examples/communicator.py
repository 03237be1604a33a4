# SPDX-License-Identifier: Apache-2.0
"""Two processes pass a tensor dict there and back over ZeroMQ: `python examples/communicator.py`."""

import multiprocessing

import torch

from zpptool.wire import ZeroMQCommunicator

ADDRESSES = ["tcp://127.0.0.1:15650", "tcp://127.0.0.1:15651"]  # rank i binds address i


def second_rank() -> None:
    with ZeroMQCommunicator(1, 2, bind=ADDRESSES[1], connect=ADDRESSES[0]) as ring:
        step = ring.recv_tensor_dict()
        ring.send_tensor_dict({"hidden_states": step["hidden_states"] * 2, "token": step["token"] + 1})


if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=second_rank).start()
    with ZeroMQCommunicator(0, 2, bind=ADDRESSES[0], connect=ADDRESSES[1]) as ring:
        ring.send_tensor_dict({"hidden_states": torch.ones(2, 3, dtype=torch.bfloat16), "token": 41})
        print(ring.recv_tensor_dict())
