"""A configuration as YAML that is read back as it was."""

from __future__ import annotations

import functools
import re
from typing import Any

# jsonargparse reads these as numbers and YAML 1.1 does not, so that YAML writes such texts without quotes.
_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+|\.[0-9_]+(?:[eE][-+]?[0-9]+)?")
# Line breaks to YAML, which would be written as they are.
_BREAK = re.compile("[\x85\u2028\u2029\ufeff]")


def as_yaml(data: Any) -> str:
    """`data` as YAML, its keys in their order.

    >>> print(as_yaml({"name": "1e3", "rate": 0.5}), end="")
    name: '1e3'
    rate: 0.5
    """
    import yaml

    text: str = yaml.dump(data, Dumper=_dumper(), default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


@functools.cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        def represent_text(self, text: str) -> Any:
            style = "'" if _NUMBER.fullmatch(text) else '"' if _BREAK.search(text) else None
            return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, Dumper.represent_text)
    return Dumper
