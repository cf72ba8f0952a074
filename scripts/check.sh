#!/usr/bin/env bash
# What must be clean before anything lands: style, types, and imports that point down only.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
mypy
lint-imports
