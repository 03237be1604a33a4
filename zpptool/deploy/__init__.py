# SPDX-License-Identifier: Apache-2.0
"""From a plan to what runs it: commands for each host, Kubernetes manifests, a compose file, systemd units."""
