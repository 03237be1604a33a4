# SPDX-License-Identifier: Apache-2.0
"""Stages that join a pipeline with one token each: plan and keys of the links follow over an encrypted connection.

docs/decisions/0009-invites.md is the protocol and the reasons for it.
"""
