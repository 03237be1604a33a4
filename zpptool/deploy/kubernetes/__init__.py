# SPDX-License-Identifier: Apache-2.0
"""Kubernetes manifests of a pipeline: one StatefulSet per stage, each with its own Service."""
