# SPDX-License-Identifier: Apache-2.0
"""The sealed channel: bulk frames of a link with keys, under AES-256-GCM, on several connections and threads.

CURVE encrypts in ZeroMQ's one thread. Frames of a megabyte and more go past it by this channel instead, whose keys are
exchanged inside the CURVE session: `session_keys.py`. One record carries one piece of a frame: `record.py`. The sender
listens (`listener.py`) only until the receiver's lanes are connected; `sender.py` and `receiver.py` are the two ends.
"""
