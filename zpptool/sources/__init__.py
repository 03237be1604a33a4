# SPDX-License-Identifier: Apache-2.0
"""Where a model comes from: a directory, the Hugging Face Hub or its cache, a web server, an object store."""
