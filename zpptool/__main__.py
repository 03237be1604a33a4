# SPDX-License-Identifier: Apache-2.0
"""`python -m zpptool` is the `zpptool` command."""

from zpptool.cli.app import main

if __name__ == "__main__":
    main()
