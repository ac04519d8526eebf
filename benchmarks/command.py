"""What every benchmark does when it is run by itself."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any


def run_alone(
    description: str | None,
    measure: Callable[..., dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    quick: Mapping[str, Any],
    quick_help: str,
) -> int:
    """Measure, with the settings of `quick` for `--quick`, and print a table, or JSON for `--json`."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help=quick_help)
    arguments = parser.parse_args()
    found = measure(**quick) if arguments.quick else measure()
    print(json.dumps(found) if arguments.json else table(found))
    return 0
