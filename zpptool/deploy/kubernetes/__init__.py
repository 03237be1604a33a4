# SPDX-License-Identifier: Apache-2.0
"""A pipeline on Kubernetes: one StatefulSet a stage, each with a Service of its own."""
