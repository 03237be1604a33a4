# SPDX-License-Identifier: Apache-2.0
"""Generate deployments from a plan: shell commands per host, Kubernetes manifests, a compose file, systemd units."""
